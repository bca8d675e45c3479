"""Which trials there are: a pure function of how often an undisturbed process gets to each failpoint."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from bs_cluster.failpoints import FAULTS

# Each kind of trial is told in the module of its name. How many places along the way each fault is tried at: the first
# and the last time always, others drawn.
TIMES = {
    "commit": {"kill": 4, "enospc": 2, "eio": 2, "hang": 1, "late": 1},
    "round": {"kill": 3, "enospc": 1, "eio": 1, "hang": 1, "late": 1},
    "aligned": {"kill": 3, "enospc": 1, "eio": 1, "hang": 1, "late": 0},
    "measure": dict.fromkeys(FAULTS, 1),
    "campaign": {"kill": 1, "enospc": 1, "eio": 0, "hang": 1, "late": 0},
}
KINDS = (*TIMES, "processes")
# What only Ray's own processes pass, which count for themselves; and what is of no other kind.
IN_RAY = {
    "measure": ("sweep.score", "router.encode"),
    "campaign": (
        "training.step",
        "training.checkpoint",
        "training.fold",
        "training.acknowledge",
        "training.basis",
        "coordinator.commit",
        "coordinator.acknowledge",
        "coordinator.close",
    ),
}
ONLY = {
    "aligned": ("training.",),
    "measure": ("sweep.", "router.", "report.", "bundle."),
    "campaign": ("training.", "coordinator."),
}
PROCESSES = ("worker", "coordinator", "evaluator", "driver", "raylet", "gcs", "controller", "mlflow")
SIGNALS = ("kill", "stop")


@dataclass(frozen=True)
class Trial:
    """``place`` is a failpoint, or of kind ``processes`` a process; ``at`` counts passes of that failpoint from 1, or
    seeds the moment."""

    kind: str
    place: str
    fault: str
    at: int

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.place}={self.fault}@{self.at}"


def trials_at(kind: str, passes: Mapping[str, int], seed: int) -> list[Trial]:
    """Each fault at each failpoint that a process of this kind passes, at several of its passes."""
    draw = random.Random(f"{kind} {seed}")
    counts = {place: count for place, count in passes.items() if place.startswith(ONLY.get(kind, ""))}
    counts |= dict.fromkeys(IN_RAY.get(kind, ()), 1)
    found = []
    for place, count in sorted(counts.items()):
        for fault in FAULTS:
            wanted = min(TIMES[kind][fault], count)
            ends = [1, count][:wanted] if count > 1 else [1][:wanted]
            between = draw.sample(range(2, count), wanted - len(ends)) if wanted > len(ends) else []
            found += [Trial(kind, place, fault, at) for at in sorted([*ends, *between])]
    return found


def trials_of_processes(seeds: int) -> list[Trial]:
    return [
        Trial("processes", process, fault, seed)
        for seed in range(1, seeds + 1)
        for fault in SIGNALS
        for process in PROCESSES
    ]
