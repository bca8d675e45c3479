"""What comes next, as a pure function of what is committed. The coordinator only asks it and carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bs_cluster.records import CloseDomain, Finished, StackId, StackRef, Step, TrainRound


@dataclass(frozen=True)
class Progress:
    """Everything the next step depends on. ``committed`` are live stacks; ``closed`` and ``reopened`` name domains, of
    which the latter close on the rounds that they have left.

    ``rounds`` has how many stacks each entry of a domain's rounds may make. ``entries`` says which entry a committed
    stack is of (the first, where it is not said), ``rejected`` which a round of was rejected.

    ``places`` are those of domains in the order of stacks, as listed where one has none; ``last_round`` is the highest
    number that a round of a domain ever had, retired and rejected ones included: a number is used once.
    """

    curriculum: tuple[str, ...]
    rounds: Mapping[str, Sequence[int]]
    cumulative: bool
    committed: Sequence[StackRef]
    closed: frozenset[str]
    rejected: frozenset[tuple[str, int]] = frozenset()
    entries: Mapping[StackId, int] = field(default_factory=dict)
    reopened: frozenset[str] = frozenset()
    places: Mapping[str, int] = field(default_factory=dict)
    last_round: Mapping[str, int] = field(default_factory=dict)


def next_step(progress: Progress) -> Step:
    """The only legal next step: the first domain that is not closed trains its next round, or closes.

    An entry of its rounds is through when a round did not beat its parent (boosting has nothing left to give), when it
    has made all its stacks, or when a later one has begun. A domain closes when all of them are.
    """
    for listed, domain in enumerate(progress.curriculum):
        if domain in progress.closed:
            continue
        position = progress.places.get(domain, listed)
        own = tuple(ref.stack for ref in progress.committed if ref.stack.domain == domain)
        earlier = tuple(ref.stack for ref in progress.committed if ref.stack.domain != domain)
        context = (*earlier, *own) if progress.cumulative else own
        entry = None if domain in progress.reopened else next_entry(progress, domain, own)
        if entry is None:
            return CloseDomain(domain, position, own, context)
        before = (progress.last_round.get(domain, 0), *(stack.round for stack in own))
        stack = StackId(domain, max(before) + 1)
        return TrainRound(stack, position, tuple(progress.committed), context, entry)
    return Finished()


def next_entry(progress: Progress, domain: str, own: Sequence[StackId]) -> int | None:
    """The entry of its rounds that ``domain``, with its committed stacks ``own``, trains by next. None: no more."""
    made = [progress.entries.get(stack, 0) for stack in own]
    last = max(made, default=0)
    for entry, most in enumerate(progress.rounds[domain]):
        if entry >= last and made.count(entry) < most and (domain, entry) not in progress.rejected:
            return entry
    return None
