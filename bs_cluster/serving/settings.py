"""How a server answers, whether it is one process or one of many replicas."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bs_cluster.errors import UsageError

KEY_VARIABLE = "BS_CLUSTER_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """``bundle`` is None for whoever is champion, ``max_prompt_tokens`` for what the campaign trained on; ``hosts`` are
    the names that requests may be sent to, any where there is none; stacks in memory may take ``resident_bytes``,
    None for all of them. Seconds: ``reload_every`` between looks at the store, ``drain`` for answers to end in."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # where a file says it

    device: str = "cpu"
    bundle: int | None = None
    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    max_running: int = 16
    max_waiting: int = 64
    max_prompt_tokens: int | None = None
    max_tokens: int = 512
    resident_bytes: int | None = None
    reload_every: float = 10.0
    drain: float = 60.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for a number that no server could work with."""
        for name in ("max_running", "max_prompt_tokens", "max_tokens", "resident_bytes", "reload_every"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UsageError(f"{name} {value}: must be more than 0")
        for name in ("max_waiting", "drain"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} {getattr(self, name)}: must be 0 or more")


def keys_of_environment() -> tuple[str, ...]:
    return tuple(filter(None, [os.environ.get(KEY_VARIABLE, "").strip()]))
