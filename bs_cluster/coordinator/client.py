"""How workers and driver speak to the coordinator: the actor behind the methods of the plain class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ray

from bs_cluster.coordinator.work import Work
from bs_cluster.events import Event, Place, Told
from bs_cluster.records import DomainRecord, RoundOutcome, StackManifest, StackRef
from bs_cluster.waiting import Say, say, wait_for

REMEDY = "raise training.answer_timeout_s or free the head of the cluster"


class Coordination(Protocol):
    """What is asked of it: ``Coordinator`` itself answers in its own process, ``CoordinatorClient`` in all others."""

    def register(self) -> str: ...
    def next_work(self, group: str) -> Work: ...
    def commit(self, group: str, manifest: StackManifest, outcome: RoundOutcome) -> StackRef: ...
    def reject(self, group: str, outcome: RoundOutcome) -> None: ...
    def close(self, group: str, record: DomainRecord) -> None: ...
    def outcomes_of(self, domain: str) -> list[RoundOutcome]: ...
    def report(self, event: Event) -> None: ...
    def events_since(self, seen: Place) -> list[Told]: ...


class CoordinatorClient:
    """``actor`` is the handle of a ``Coordinator`` actor. Every answer is waited for up to ``patience_s``
    (``training.answer_timeout_s``), with words to ``say``.

    Methods raise what the coordinator raises, and ClusterResourceError where it does not answer.
    """

    def __init__(self, actor: Any, patience_s: float, say: Say = say):
        self.actor, self.patience_s, self.say = actor, patience_s, say

    def register(self) -> str:
        return self._answer("its turn as the worker group", lambda: self.actor.register.remote())

    def next_work(self, group: str) -> Work:
        return self._answer("the next step", lambda: self.actor.next_work.remote(group))

    def commit(self, group: str, manifest: StackManifest, outcome: RoundOutcome) -> StackRef:
        what = f"the commit of {manifest.stack.name}"
        return self._answer(what, lambda: self.actor.commit.remote(group, manifest, outcome))

    def reject(self, group: str, outcome: RoundOutcome) -> None:
        self._answer(f"the rejection of {outcome.stack.name}", lambda: self.actor.reject.remote(group, outcome))

    def close(self, group: str, record: DomainRecord) -> None:
        self._answer(f"the closing of {record.domain}", lambda: self.actor.close.remote(group, record))

    def outcomes_of(self, domain: str) -> list[RoundOutcome]:
        return self._answer(f"the rounds of {domain}", lambda: self.actor.outcomes_of.remote(domain))

    def report(self, event: Event) -> None:
        """Says it and does not wait: losing an event loses a line on a screen."""
        self.actor.report.remote(event)

    def events_since(self, seen: Place) -> list[Told]:
        return self._answer("the workers' events", lambda: self.actor.events_since.remote(seen))

    def stop(self) -> None:
        """Ends the actor for good; the store has all it knew."""
        ray.kill(self.actor)

    def _answer(self, what: str, ask: Callable[[], ray.ObjectRef]) -> Any:
        return wait_for(ask, f"the coordinator: {what}", self.patience_s, REMEDY, self.say)
