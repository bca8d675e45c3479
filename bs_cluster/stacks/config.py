"""The PEFT configuration of a stack, and the name under which PEFT knows the method.

PEFT's public register function admits only its own closed list of names, but everything downstream looks methods
up in plain dicts by a string, so a string of our own goes into those dicts (``stacks/__init__.py``). After importing
``bs_cluster.stacks``, ``get_peft_model``, ``PeftModel.from_pretrained`` and TRL take a stack like any adapter.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from peft.config import PeftConfig


class PeftMethod(str):
    """A PEFT method name with the ``value`` that PEFT reads off its enum members."""

    @property
    def value(self) -> str:
        return str(self)


METHOD = PeftMethod("BRAINSTACK")
# What an exported adapter calls its method. Where nobody imported this package PEFT knows neither name, and fails with
# a KeyError that shows the one in the file: this one says what to do.
EXPORTED = "BRAINSTACK: pip install 'bs-cluster[stacks]', and import bs_cluster.stacks before loading"
PREFIX = "stack_"


@dataclass
class StackConfig(PeftConfig):
    """One stack: ``experts`` LoRA pairs of ``rank`` on each target module, gated top-``top_k`` per token.

    ``position`` (the domain's place in the curriculum) and ``round`` fix where the stack sits in the fused block. With
    ``rounds`` above one it is as many stacks of a domain in one adapter, the rounds up to ``round``: they fire together
    and do not learn.
    """

    rank: int = field(default=16, metadata={"help": "LoRA rank R of each expert"})
    experts: int = field(default=4, metadata={"help": "number of experts E"})
    top_k: int = field(default=2, metadata={"help": "experts that fire per token"})
    alpha: float = field(default=16.0, metadata={"help": "rsLoRA numerator: the delta is scaled by alpha/sqrt(rank)"})
    router_init_std: float = field(default=0.02, metadata={"help": "std of the expert router at the start"})
    target_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "projections to wrap"})
    exclude_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "never wrapped"})
    domain: str = field(default="default", metadata={"help": "domain whose gate weight multiplies this stack"})
    round: int = field(default=1, metadata={"help": "round of residual boosting, from 1"})
    rounds: int = field(default=1, metadata={"help": "how many rounds it holds, of which ``round`` is the last"})
    position: int = field(default=0, metadata={"help": "the domain's place in the curriculum, from 0"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = METHOD  # type: ignore[assignment]
        if self.top_k > self.experts:
            raise ValueError(f"top_k is {self.top_k} but a stack has {self.experts} experts; lower top_k")
        if not 1 <= self.rounds <= self.round:
            raise ValueError(f"{self.rounds} rounds of which the last is round {self.round} cannot be")
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))

    @property
    def scale(self) -> float:
        """rsLoRA scale alpha/sqrt(R) (arXiv 2312.03732)."""
        return self.alpha / math.sqrt(self.rank)

    @property
    def order(self) -> tuple[int, int, str]:
        return self.position, self.round, self.domain


def carries_stack(path: str, target_modules: Collection[str], exclude_modules: Collection[str]) -> bool:
    """Whether the module of this path is a site. Whole path parts decide, so that excluding ``vision_tower`` excludes
    everything under it."""
    parts = path.split(".")
    return parts[-1] in target_modules and set(parts).isdisjoint(exclude_modules)
