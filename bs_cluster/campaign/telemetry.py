"""A campaign's numbers among Ray's own metrics: what Prometheus scrapes, and ``cluster/grafana/campaign.json`` draws.

A view like MLflow's and the console's: nothing is decided by it. Ray adds ``ray_`` before a name.
"""

from __future__ import annotations

from typing import Self

from ray.util.metrics import Counter, Gauge

from bs_cluster.events import DomainClosed, Event, NodeLeaves, RoundEnded, RoundStarted, StepDone
from bs_cluster.gauges import StandingGauges

# Of the step that was judged last: fields of ``StepDone``.
OF_A_STEP = {
    "step": "Optimizer step of the round under way",
    "steps": "Optimizer steps that the round takes at most",
    "loss": "Training loss, nats per completion token",
    "selection_loss": "Loss on the rows that choose a round's snapshot, nats per completion token",
    "imbalance": "How often the busiest expert of any site fires, 1 when balanced",
    "grad_norm": "Norm of the learner's gradient before clipping",
    "learning_rate": "Learning rate",
}


class Telemetry:
    """Takes events as they come; ``progress`` is of what has none, the sweep and the meta-router. A context: while it
    is open, gauges stand as they were set last, and those of a round's steps until it ends."""

    def __init__(self, campaign: str):
        self._campaign = campaign
        self._gauges = {name: self._gauge(name, about, "stack") for name, about in OF_A_STEP.items()}
        self._gauges["domain_loss"] = self._gauge("domain_loss", "A closed domain's validation loss", "domain", "mode")
        self._gauges["progress"] = self._gauge("progress", "Share that is done of what is being measured", "part")
        self._undone = self._counter("steps_undone", "Steps that the guard undid", "stack")
        self._rounds = self._counter("rounds", "Rounds that ended, by what became of them", "outcome")
        self._leaving = self._counter("nodes_leaving", "Nodes that the platform took from training workers")
        self._standing = StandingGauges()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._standing.close()

    def record(self, event: Event) -> None:
        match event:
            case RoundStarted(stack, steps):
                self._set("step", 0, stack=stack.name)
                self._set("steps", steps, stack=stack.name)
            case StepDone():
                for name in OF_A_STEP:
                    if (value := getattr(event, name)) is not None:
                        self._set(name, value, stack=event.stack.name)
                if event.verdict != "go on":
                    self._undone.inc(1, self._tags(stack=event.stack.name))
            case RoundEnded(outcome):
                self._rounds.inc(1, self._tags(outcome="committed" if outcome.committed else "rejected"))
                self._standing.forget("stack", outcome.stack.name)
            case DomainClosed(domain, isolated, base):
                self._set("domain_loss", isolated, domain=domain, mode="isolated")
                self._set("domain_loss", base, domain=domain, mode="base")
            case NodeLeaves():
                self._leaving.inc(1, self._tags())
            case _:
                pass

    def progress(self, part: str, done: int, total: int) -> None:
        self._set("progress", done / max(total, 1), part=part)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._standing.set(self._gauges[name], value, self._tags(**tags))

    def _tags(self, **tags: str) -> dict[str, str]:
        return {"campaign": self._campaign, **tags}

    @staticmethod
    def _gauge(name: str, about: str, *tags: str) -> Gauge:
        return Gauge(f"bs_cluster_{name}", description=about, tag_keys=("campaign", *tags))

    @staticmethod
    def _counter(name: str, about: str, *tags: str) -> Counter:
        return Counter(f"bs_cluster_{name}", description=about, tag_keys=("campaign", *tags))
