"""May a new bundle become champion? Decided by what is *served*: the same rows, the former champion's routed loss
against the new bundle's, row by row.

That old stacks did not move says nothing about what their users get: a new meta-router may send prompts elsewhere.
So a bundle is promoted only if no kind of row got worse, by more than chance and by more than a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bs_cluster.estimates import Estimate, paired_difference
from bs_cluster.records import Record, RowLoss

Policy = Literal["guarded", "always", "manual"]


@dataclass(frozen=True)
class ServedChange(Record):
    """What serving one bundle instead of another does to the same rows, in nats per completion token (below zero:
    better). ``kinds`` is keyed by the rows' owner, a domain or a kind of row that no domain owns."""

    against: int
    overall: Estimate
    kinds: dict[str, Estimate]
    worse: tuple[str, ...]


@dataclass(frozen=True)
class Decision(Record):
    """``promote`` says whether the alias moves; ``reason`` is what people are told."""

    promote: bool
    reason: str


def served_change(
    former: Sequence[RowLoss], now: Sequence[RowLoss], owners: Sequence[str], against: int, slack: float
) -> ServedChange:
    """Compares routed losses of the same rows. A kind of row counts as worse where the whole 95 % interval lies above
    zero and its mean above ``slack``."""
    kinds = {}
    for owner in dict.fromkeys(owners):
        own = [index for index, name in enumerate(owners) if name == owner]
        kinds[owner] = paired_difference([now[i] for i in own], [former[i] for i in own])
    return ServedChange(
        against=against,
        overall=paired_difference(now, former),
        kinds=kinds,
        worse=tuple(kind for kind, change in kinds.items() if change.low > 0 and change.mean > slack),
    )


def decide(policy: Policy, change: ServedChange | None, slack: float) -> Decision:
    """``change`` is None where there is no champion to compare with: the first bundle is always promoted, unless
    promotion is by hand."""
    if policy == "manual":
        return Decision(False, "promotion is by hand: bs_cluster bundles promote")
    if policy == "always":
        return Decision(True, "every bundle is promoted")
    if change is None:
        return Decision(True, "the first bundle")
    if not change.worse:
        return Decision(True, f"no kind of row is served worse than by bundle {change.against} by more than {slack:g}")
    told = ", ".join(f"{kind} {change.kinds[kind]}" for kind in change.worse)
    return Decision(False, f"served worse than bundle {change.against} by more than {slack:g} nats: {told}")
