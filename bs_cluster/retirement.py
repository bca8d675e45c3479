"""What of a campaign's history is in force, and what a domain's retirement would change. Pure functions.

Nothing is ever taken out of the history. A retirement is one more fact in it, and what is live is what was committed
less what was retired since: a domain that was removed is gone, one that is replaced trains anew, of one that was
rolled back the rounds that are left close again, and of one that was merged the stack that holds them all. That stack
is committed first, beside the closed domain's rounds, and waits: the retirement of the rounds is what brings it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bs_cluster.errors import IntegrityError, UsageError
from bs_cluster.records import (
    FATES,
    MERGED,
    REMOVED,
    REPLACED,
    ROLLED_BACK,
    SCHEMA_VERSION,
    DomainRecord,
    Erasure,
    Retirement,
    StackManifest,
    StackRef,
)

Fact = StackRef | DomainRecord | Retirement | Erasure
Committed = Sequence[tuple[StackRef, StackManifest]]


@dataclass(frozen=True)
class Live:
    """``stacks`` in the order of their commits, ``closings`` by domain in the order in which they closed.

    ``reopened`` holds the last closing of each domain that was rolled back or merged and has not closed again: what it
    has closes on the very rows of that record, without another round. ``waiting`` are stacks that were to take the
    place of a closed domain's rounds and have not. ``gone`` is by domain the retirement that removed it,
    ``retired`` by stack the one that took it; ``withdrawn`` are those that are not to be served meanwhile.
    """

    stacks: tuple[StackRef, ...] = ()
    closings: Mapping[str, DomainRecord] = field(default_factory=dict)
    reopened: Mapping[str, DomainRecord] = field(default_factory=dict)
    gone: Mapping[str, Retirement] = field(default_factory=dict)
    retired: Mapping[StackRef, Retirement] = field(default_factory=dict)
    withdrawn: frozenset[StackRef] = frozenset()
    waiting: tuple[StackRef, ...] = ()
    erased: Mapping[str, Erasure] = field(default_factory=dict)

    def retired_of(self, stacks: Iterable[StackRef]) -> list[StackRef]:
        """Those of ``stacks`` that are retired, in their order, less rounds whose place a live stack has taken: what
        they learned is still served, and may be by them."""
        taken = (ref for ref in stacks if ref in self.retired)
        return [ref for ref in taken if self.retired[ref].into not in self.stacks]


def live(facts: Iterable[Fact]) -> Live:
    """What is in force after these facts, which are in the order of their commits. Raises IntegrityError where one says
    what cannot have been when it was committed."""
    stacks: dict[StackRef, None] = {}
    closings: dict[str, DomainRecord] = {}
    reopened: dict[str, DomainRecord] = {}
    gone: dict[str, Retirement] = {}
    retired: dict[StackRef, Retirement] = {}
    withdrawn: set[StackRef] = set()
    waiting: dict[StackRef, None] = {}
    erased: dict[str, Erasure] = {}
    for fact in facts:
        if isinstance(fact, StackRef):
            (waiting if fact.stack.domain in closings else stacks)[fact] = None
        elif isinstance(fact, DomainRecord):
            if fact.domain in closings:
                raise IntegrityError(f"{fact.domain} closes twice, and nothing was retired between; repair the store")
            if committed_rounds(fact) != {ref for ref in stacks if ref.stack.domain == fact.domain}:
                raise IntegrityError(
                    f"the closing record of {fact.domain} does not tell the rounds that its domain had committed; "
                    "repair the store"
                )
            closings[fact.domain] = fact
            reopened.pop(fact.domain, None)
        elif isinstance(fact, Retirement):
            _check(fact, stacks, waiting)
            if fact.into is not None:
                del waiting[fact.into]
                stacks[fact.into] = None
            over = [ref for ref in waiting if ref.stack.domain in fact.fates]  # of a merging that was not finished
            for ref in (*fact.stacks, *over):
                (waiting if ref in waiting else stacks).pop(ref)
                retired[ref] = fact
            withdrawn.update(fact.stacks if fact.withdrawn else ())
            for domain, fate in fact.fates.items():
                closed = closings.pop(domain, None) or reopened.pop(domain, None)
                gone.pop(domain, None)
                if fate == REMOVED:
                    gone[domain] = fact
                elif fate in (ROLLED_BACK, MERGED) and closed is not None:
                    reopened[domain] = closed
        else:
            if lives := [ref.stack.name for ref in fact.stacks if ref not in retired]:
                raise IntegrityError(f"erasure {fact.number} names {lives[0]}, which is not retired; repair the store")
            withdrawn.update(fact.stacks)
            erased |= dict.fromkeys(fact.digests, fact)
    return Live(tuple(stacks), closings, reopened, gone, retired, frozenset(withdrawn), tuple(waiting), erased)


def _check(fact: Retirement, stacks: Mapping[StackRef, None], waiting: Mapping[StackRef, None]) -> None:
    if strange := [ref.stack.name for ref in fact.stacks if ref not in stacks]:
        raise IntegrityError(f"retirement {fact.number} takes {strange[0]}, which was not there; repair the store")
    if wrong := [fate for fate in fact.fates.values() if fate not in FATES]:
        raise IntegrityError(f"retirement {fact.number} knows a fate {wrong[0]!r}, there are {', '.join(FATES)}")
    left = {ref.stack.domain for ref in stacks if ref not in fact.stacks}
    for domain, fate in fact.fates.items():
        if (fate == ROLLED_BACK) != (domain in left):
            raise IntegrityError(f"retirement {fact.number} leaves {domain} other rounds than a domain {fate}")
    merged = {domain for domain, fate in fact.fates.items() if fate == MERGED}
    brought = set() if fact.into is None else {fact.into.stack.domain}
    if merged != brought or (fact.into is not None and fact.into not in waiting):
        raise IntegrityError(f"retirement {fact.number} brings in another stack than one of its domain that waits")


def committed_rounds(record: DomainRecord) -> set[StackRef]:
    """The stacks that a closing record says its domain has."""
    return {StackRef(outcome.stack, outcome.manifest or "") for outcome in record.rounds if outcome.committed}


def dependants(committed: Committed, taken: Iterable[StackRef]) -> dict[str, tuple[str, ...]]:
    """The domains that were trained after stacks of ``taken`` and depend on them, with the names of those that fired
    beside them; none for a domain that only kept out of their directions."""
    taken = set(taken)
    found: dict[str, set[str]] = {}
    names = {ref.stack: ref.stack.name for ref in taken}
    for ref, manifest in committed:
        fired = {names[stack] for stack in manifest.context if stack in names}
        kept_out = manifest.basis is not None and not taken.isdisjoint(manifest.parents)
        if ref not in taken and ref.stack.domain not in {other.stack.domain for other in taken} and (fired or kept_out):
            found.setdefault(ref.stack.domain, set()).update(fired)
    return {domain: tuple(sorted(fired)) for domain, fired in found.items()}


def missing_parents(manifest: StackManifest, stacks: Iterable[StackRef]) -> tuple[str, ...]:
    """The stacks that fired while this one trained and are not among the live ``stacks``."""
    there = {ref.stack for ref in stacks}
    return tuple(stack.name for stack in manifest.context if stack not in there)


@dataclass(frozen=True)
class Request:
    """What a person asks for. ``fate`` is what becomes of ``domain``; ``to`` is the round that stays the last of one
    that is rolled back, None for the one before its last; ``into`` is the stack that takes the place of one that is
    merged. ``retrain`` names the dependants that train anew."""

    domain: str
    fate: str
    to: int | None = None
    into: StackRef | None = None
    retrain: tuple[str, ...] = ()
    withdrawn: bool = False
    reason: str = ""
    when: str = ""


def plan(request: Request, number: int, now: Live, committed: Committed) -> Retirement | None:
    """The retirement that answers the request, or None where it is answered already. ``committed`` are the live stacks.

    Raises UsageError for a domain that is not there, a round that it does not have, a stack that does not wait to take
    the rounds' place, and a dependant that is none.
    """
    own = [ref for ref, _ in committed if ref.stack.domain == request.domain]
    if not own and request.domain not in now.closings:
        return _answered(request, now)
    if request.fate == MERGED and request.into not in now.waiting:
        raise UsageError(f"no stack waits to take the place of {request.domain}'s rounds; domains compress makes one")
    if request.fate == ROLLED_BACK:
        taken = _after(request, now, own)
        if not taken:
            return None
    else:
        taken = own
    if request.fate == REMOVED and not any(ref.stack.domain != request.domain for ref, _ in committed):
        raise UsageError(f"{request.domain} is all that the campaign has; delete the campaign, or replace the domain")
    fates = {request.domain: request.fate}
    depend = dependants(committed, taken)
    if strange := [name for name in request.retrain if name not in depend]:
        known = ", ".join(depend) or "none"
        raise UsageError(f"{strange[0]} does not depend on what is taken from {request.domain}; dependants: {known}")
    # What is retrained has dependants of its own, which may be kept all the same.
    fates |= {name: REPLACED for name in depend if name in request.retrain}
    taken = [*taken, *(ref for ref, _ in committed if ref.stack.domain in request.retrain)]
    kept = {name: fired for name, fired in dependants(committed, taken).items() if name not in fates}
    return Retirement(
        schema_version=SCHEMA_VERSION,
        number=number,
        domain=request.domain,
        fates=fates,
        stacks=tuple(taken),
        kept=kept,
        withdrawn=request.withdrawn,
        into=request.into,
        reason=request.reason,
        when=request.when,
    )


def _answered(request: Request, now: Live) -> None:
    """Of a domain with nothing that is live: raises unless that is what was asked for."""
    name, known = request.domain, ", ".join(now.closings) or "none"
    taken = any(ref.stack.domain == name for ref in now.retired)
    if request.fate == REMOVED and name in now.gone:
        return
    if request.fate == REPLACED and taken and name not in now.gone:
        return
    if request.fate == REPLACED and name in now.gone:
        raise UsageError(
            f"{name} was removed ({now.gone[name].reason}); a domain comes back under another name: bs_cluster domains "
            "add"
        )
    raise UsageError(f"the campaign has no domain {name!r} with anything to take out; it has {known}")


def _after(request: Request, now: Live, own: Sequence[StackRef]) -> list[StackRef]:
    """The rounds of a domain after the one that is to stay its last."""
    rounds = [ref.stack.round for ref in own]
    name, has = request.domain, ", ".join(map(str, rounds)) or "none"
    if request.to is None and name in now.reopened:
        return []  # taken back already, by the same words
    if name not in now.closings and name not in now.reopened:
        raise UsageError(f"{name} is still training; a round is taken back once its domain has closed")
    last = request.to if request.to is not None else (rounds[-2] if len(rounds) > 1 else 0)
    if last not in rounds:
        raise UsageError(
            f"{name} has the rounds {has}: one of them has to stay its last; to take all of them, "
            "domains replace or domains remove"
        )
    return [ref for ref in own if ref.stack.round > last]


def retirement_words(fact: Retirement) -> str:
    """``bb removed (bb_r1, bb_r2): licence``, and who trains anew with it."""
    names = ", ".join(ref.stack.name for ref in fact.stacks) or "no round"
    with_it = [domain for domain in fact.fates if domain != fact.domain]
    anew = f"; {', '.join(with_it)} retrained" if with_it else ""
    return f"{fact.domain} {fact.fates[fact.domain]} ({names}): {fact.reason}{anew}"


def told_today(records: Sequence[DomainRecord]) -> tuple[DomainRecord, ...]:
    """Closing records without what they say of domains that are no more as they were then: ``records`` are live, in the
    order in which they closed, and one speaks of those before it."""
    found = []
    for place, record in enumerate(records):
        before = {earlier.domain for earlier in records[:place]}
        found.append(_about(record, before))
    return tuple(found)


def _about(record: DomainRecord, before: set[str]) -> DomainRecord:
    def of(table: Mapping) -> dict:
        return {name: told for name, told in table.items() if name in before or name == record.domain}

    return replace(
        record,
        matrix=of(record.matrix),
        overlap=of(record.overlap),
        overlap_claimed=of(record.overlap_claimed),
        foreign=of(record.foreign),
        abroad=of(record.abroad),
    )
