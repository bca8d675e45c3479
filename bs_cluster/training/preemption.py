"""Nodes that a platform is about to take from the workers, as Ray Train tells it of a node that drains."""

from __future__ import annotations

import time
from dataclasses import dataclass

import ray.train


@dataclass(frozen=True)
class Leaving:
    """``nodes`` (Ray's ids, sorted) with the workers of these ``ranks`` go in ``seconds``; None: nobody says when."""

    nodes: tuple[str, ...]
    ranks: tuple[int, ...]
    seconds: float | None


def leaving_nodes() -> Leaving | None:
    """Which of the workers' nodes drain. A barrier: every worker asks, as often as the others."""
    told = ray.train.get_preemption_info()
    if told is None:
        return None
    seconds = None if told.deadline_ms is None else max(0.0, told.deadline_ms / 1000 - time.time())
    return Leaving(tuple(told.preempted_node_ids), tuple(told.preempted_ranks), seconds)
