"""The coordinator: curriculum order, basis hand-out, commit fencing. A plain class; the campaign makes it an actor.

It keeps nothing that the store does not: a coordinator started on the same store carries on where the last one was.
The one thing it may lose is a rejection not yet written into a domain's record; that round is then trained again,
with the same result.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from bs_cluster.config.identity import campaign_identity, curriculum, identity_differences, stacks_of_entries
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.curriculum import Progress, next_step
from bs_cluster.coordinator.room import check_room, claimed_so_far
from bs_cluster.coordinator.work import SharedBasis, Work
from bs_cluster.errors import ConfigError, FencedError, OutOfOrderError
from bs_cluster.events import Event, Place, Told
from bs_cluster.failpoints import failpoint
from bs_cluster.records import (
    CloseDomain,
    DomainRecord,
    RoundOutcome,
    StackId,
    StackManifest,
    StackRef,
    Step,
    TrainRound,
)
from bs_cluster.retirement import Live
from bs_cluster.store.store import Store

EVENTS_KEPT = 1000  # between two looks of the driver; older ones are dropped


class Coordinator:
    """One per campaign. ``share`` makes bytes fetchable by reference (``ray.put``), once per basis."""

    def __init__(self, config: CampaignConfig, share: Callable[[bytes], Any]):
        self.config = config
        self.order = curriculum(config)
        self.store = Store(config.store.uri, config.campaign)
        self.share = share
        self.group = ""
        self.outcomes: dict[StackId, RoundOutcome] = {}
        self.basis: SharedBasis | None = None
        self.events: deque[Told] = deque(maxlen=EVENTS_KEPT)
        self.place = Place(uuid.uuid4().hex)
        check_identity(self.store, config)
        self.store.take_epoch()  # from now on no earlier coordinator's commit is taken

    # --- worker groups ----------------------------------------------------------------------------------------

    def register(self) -> str:
        """A new worker group takes over; every earlier one is fenced off from now on. So is every group of before a
        restart of the coordinator, which does not know whose turn it was."""
        self.group = uuid.uuid4().hex
        return self.group

    def _check_group(self, group: str) -> None:
        if group != self.group:
            raise FencedError(f"worker group {group[:8]} has been replaced; its work is not committed")

    # --- handing out work -------------------------------------------------------------------------------------

    def next_work(self, group: str) -> Work:
        """What every rank of the group works on now.

        The answer changes only through ``commit``, ``reject`` and ``close``, so all ranks get the same one.
        """
        self._check_group(group)
        step = self._next()
        confined = isinstance(step, TrainRound) and self.config.null_space.enabled
        return Work(step, self._combined_basis() if confined else None)

    def _next(self) -> Step:
        now = self.store.live()
        return next_step(
            Progress(
                curriculum=self.order,
                rounds={name: stacks_of_entries(self.config, name) for name in self.order},
                cumulative=self.config.training.context == "cumulative",
                committed=[ref for ref, _ in self.store.stacks()],
                closed=frozenset(now.closings),
                rejected=frozenset((o.stack.domain, o.entry) for o in self.outcomes.values() if not o.committed),
                entries={ref.stack: manifest.entry for ref, manifest in self.store.stacks()},
                reopened=frozenset(now.reopened),
                places=self._places(),
                last_round=last_rounds(self.store, self.outcomes),  # one may have been rejected just now
            )
        )

    def _places(self) -> dict[str, int]:
        """Of every domain of the curriculum in the order of stacks. One that has stacks, or closed without any, keeps
        its place; the others come after all that ever was, so that a place is taken once."""
        ever = [(manifest.stack.domain, manifest.position) for _, manifest in self.store.every_stack()]
        ever += [(record.domain, record.position) for record in self.store.closings()]
        held = {manifest.stack.domain: manifest.position for _, manifest in self.store.stacks()}
        held |= {record.domain: record.position for record in self.store.domains()}
        free = 1 + max((place for _, place in ever), default=-1)
        new = (domain for domain in self.order if domain not in held)
        return held | {domain: free + number for number, domain in enumerate(new)}

    def _combined_basis(self) -> SharedBasis | None:
        records = [record for record in self.store.domains() if record.basis is not None]
        if not records:
            return None
        closed = tuple(record.domain for record in records)
        if self.basis is None or self.basis.closed != closed:
            basis = claimed_so_far(self.store)
            if (scarce := check_room(basis)) is not None:  # once a domain: the basis is kept for its rounds
                self.report(scarce)
            data = basis.to_bytes()
            failpoint("coordinator.basis")
            entry = self.store.put_bytes("basis.safetensors", data)
            self.basis = SharedBasis(closed, entry.sha256, self.share(data))
        return self.basis

    # --- taking results ---------------------------------------------------------------------------------------

    def commit(self, group: str, manifest: StackManifest, outcome: RoundOutcome) -> StackRef:
        """Publishes a stack whose files are in the store already. Raises OutOfOrderError, FencedError."""
        self._check_group(group)
        step = self._next()
        if not isinstance(step, TrainRound) or step.stack != manifest.stack or step.parents != manifest.parents:
            raise OutOfOrderError(f"{manifest.stack.name} was offered, the curriculum's next step is {step}")
        failpoint("coordinator.commit")
        ref = self.store.publish_stack(manifest)
        self.outcomes[outcome.stack] = outcome
        failpoint("coordinator.acknowledge")
        return ref

    def reject(self, group: str, outcome: RoundOutcome) -> None:
        """A round did not beat its parent; its domain closes next."""
        self._check_group(group)
        step = self._next()
        if not isinstance(step, TrainRound) or step.stack != outcome.stack:
            raise OutOfOrderError(f"a rejection of {outcome.stack.name} came, the next step is {step}")
        self.outcomes[outcome.stack] = outcome

    def close(self, group: str, record: DomainRecord) -> None:
        """Writes a domain's closing record."""
        self._check_group(group)
        step = self._next()
        if not isinstance(step, CloseDomain) or step.domain != record.domain:
            raise OutOfOrderError(f"a closing of {record.domain} came, the next step is {step}")
        failpoint("coordinator.close")
        self.store.close_domain(record)

    def outcomes_of(self, domain: str) -> list[RoundOutcome]:
        """How the domain's rounds ended that this coordinator was told of."""
        return [outcome for stack, outcome in self.outcomes.items() if stack.domain == domain]

    # --- for people -------------------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """Workers say what they do; the driver shows it."""
        self.place = Place(self.place.epoch, self.place.number + 1)
        self.events.append(Told(self.place, event))

    def events_since(self, seen: Place) -> list[Told]:
        """Events after ``seen``; all that are kept, where ``seen`` is of a coordinator before this one."""
        known = seen.number if seen.epoch == self.place.epoch else 0
        return [told for told in self.events if told.place.number > known]


def last_rounds(store: Store, besides: Iterable[StackId] = ()) -> dict[str, int]:
    """By domain the highest number that a round of it ever had, retired and rejected ones and ``besides`` included."""
    tried = [ref.stack for ref, _ in store.every_stack()]
    tried += [outcome.stack for record in store.closings() for outcome in record.rounds]
    found: dict[str, int] = {}
    for stack in (*tried, *besides):
        found[stack.domain] = max(stack.round, found.get(stack.domain, 0))
    return found


def check_domains(now: Live, domains: Collection[str]) -> None:
    """Raises ConfigError where a config and the history disagree about which domains there are."""
    wrong = [
        f"domains: {name} was removed from the campaign ({now.gone[name].reason}); take it out here too: the same "
        f"bs_cluster domains remove does, or name a new domain otherwise"
        for name in domains
        if name in now.gone
    ]
    there = dict.fromkeys([ref.stack.domain for ref in now.stacks] + list(now.closings) + list(now.reopened))
    wrong += [
        f"domains: {name} is in the campaign and not here; put it back, or take it out of both: bs_cluster domains "
        "remove"
        for name in there
        if name not in domains
    ]
    if wrong:
        raise ConfigError(wrong)


def check_identity(store: Store, config: CampaignConfig) -> None:
    """Makes the campaign's identity permanent, or checks this config against it."""
    mine = campaign_identity(config)
    differences = identity_differences(store.pin_identity(mine), mine)
    if differences:
        raise ConfigError(differences)
