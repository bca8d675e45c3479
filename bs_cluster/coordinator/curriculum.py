"""What comes next, as a pure function of what is committed. The coordinator only asks it and carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bs_cluster.records import CloseDomain, Finished, StackId, StackRef, Step, TrainRound


@dataclass(frozen=True)
class Progress:
    """Everything the next step depends on. ``committed`` are live stacks; ``closed``, ``rejected`` and ``reopened``
    name domains, of which the last close on the rounds that they have left.

    ``places`` are those of domains in the order of stacks, as listed where one has none; ``last_round`` is the highest
    number that a round of a domain ever had, retired and rejected ones included: a number is used once.
    """

    curriculum: tuple[str, ...]
    max_rounds: Mapping[str, int]
    cumulative: bool
    committed: Sequence[StackRef]
    closed: frozenset[str]
    rejected: frozenset[str]
    reopened: frozenset[str] = frozenset()
    places: Mapping[str, int] = field(default_factory=dict)
    last_round: Mapping[str, int] = field(default_factory=dict)


def next_step(progress: Progress) -> Step:
    """The only legal next step: the first domain that is not closed trains its next round, or closes.

    A domain closes when a round did not beat its parent (boosting has nothing left to give) or its rounds are used up.
    """
    for listed, domain in enumerate(progress.curriculum):
        if domain in progress.closed:
            continue
        position = progress.places.get(domain, listed)
        own = tuple(ref.stack for ref in progress.committed if ref.stack.domain == domain)
        earlier = tuple(ref.stack for ref in progress.committed if ref.stack.domain != domain)
        context = (*earlier, *own) if progress.cumulative else own
        if domain in progress.reopened | progress.rejected or len(own) >= progress.max_rounds[domain]:
            return CloseDomain(domain, position, own, context)
        before = (progress.last_round.get(domain, 0), *(stack.round for stack in own))
        stack = StackId(domain, max(before) + 1)
        return TrainRound(stack, position, tuple(progress.committed), context)
    return Finished()
