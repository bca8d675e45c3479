"""What the coordinator hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bs_cluster.records import Step


@dataclass(frozen=True)
class SharedBasis:
    """All directions that the domains in ``closed`` claimed, as one blob: its digest and where workers fetch the bytes
    (``handle``, an object reference)."""

    closed: tuple[str, ...]
    digest: str
    handle: Any


@dataclass(frozen=True)
class Work:
    """The step that a worker group works on now. ``basis`` is what a round is confined to, where there is any."""

    step: Step
    basis: SharedBasis | None
