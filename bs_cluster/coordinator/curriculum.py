"""What comes next, as a pure function of what is committed. The coordinator only asks it and carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bs_cluster.records import CloseDomain, Finished, StackId, StackRef, Step, TrainRound


@dataclass(frozen=True)
class Progress:
    """Everything the next step depends on. ``closed`` and ``rejected`` name domains."""

    curriculum: tuple[str, ...]
    max_rounds: Mapping[str, int]
    cumulative: bool
    committed: Sequence[StackRef]
    closed: frozenset[str]
    rejected: frozenset[str]


def next_step(progress: Progress) -> Step:
    """The only legal next step: the first domain that is not closed trains its next round, or closes.

    A domain closes when a round did not beat its parent (boosting has nothing left to give) or its rounds are used up.
    """
    for position, domain in enumerate(progress.curriculum):
        if domain in progress.closed:
            continue
        own = tuple(ref.stack for ref in progress.committed if ref.stack.domain == domain)
        earlier = tuple(ref.stack for ref in progress.committed if ref.stack.domain != domain)
        context = (*earlier, *own) if progress.cumulative else own
        if domain in progress.rejected or len(own) >= progress.max_rounds[domain]:
            return CloseDomain(domain, position, own, context)
        stack = StackId(domain, len(own) + 1)
        return TrainRound(stack, position, tuple(progress.committed), context)
    return Finished()
