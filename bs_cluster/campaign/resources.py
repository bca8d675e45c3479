"""What a campaign asks of a cluster, and whether that cluster can ever give it. Pure: ``nodes.py`` looks and waits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import ClusterResourceError

Resources = Mapping[str, float]  # kind (``CPU``, ``GPU``) -> amount


@dataclass(frozen=True)
class Ask:
    """``count`` processes of one kind at the same time, ``least`` of which are enough, each with so many CPUs and GPUs.
    ``settings`` ask for them."""

    who: str
    count: int
    least: int
    cpus: float
    gpus: float
    settings: str

    @property
    def each(self) -> dict[str, float]:
        return {kind: amount for kind, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}

    def fit(self, node: Resources) -> int:
        """How many of them one node of these resources holds."""
        return min(math.floor(node.get(kind, 0.0) / amount + 1e-6) for kind, amount in self.each.items())

    def __str__(self) -> str:
        number = f"{self.count}" if self.least == self.count else f"{self.least} to {self.count}"
        return f"{number} {self.who} with {amounts(self.each)} each"


@dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler may start: its resources, and how many of it there may be at once."""

    name: str
    resources: Resources
    most: float


@dataclass(frozen=True)
class Cluster:
    """The resources of the head, of all nodes that live (the head is one of them), and what may come: at most
    ``most_workers`` nodes beside the head, of these types. ``unseen``: there is an autoscaler, but it does not say what
    it may start."""

    head: Resources
    nodes: tuple[Resources, ...]
    types: tuple[NodeType, ...] = ()
    most_workers: float = math.inf
    unseen: bool = False

    @property
    def grows(self) -> bool:
        return self.unseen or bool(self.types)

    def has_room(self, ask: Ask) -> int:
        """How many of the asked processes the living nodes hold, were nothing else on them."""
        return sum(ask.fit(node) for node in self.nodes)

    def obtainable(self, ask: Ask) -> float:
        """How many of them it could ever hold at once."""
        if self.unseen:
            return math.inf
        grown, left = float(ask.fit(self.head)), self.most_workers
        for kind in sorted(self.types, key=lambda kind: ask.fit(kind.resources), reverse=True):
            fit, count = ask.fit(kind.resources), min(kind.most, left)
            if fit:
                grown += fit * count
                left -= count
        return max(grown, float(self.has_room(ask)))

    def __str__(self) -> str:
        total = {kind: sum(node.get(kind, 0.0) for node in self.nodes) for kind in ("CPU", "GPU")}
        if self.unseen:
            growth = "an autoscaler may add some"
        elif self.types:
            growth = "may add " + ", ".join(f"{k.most:g} {k.name} ({amounts(k.resources)})" for k in self.types)
            growth += "" if math.isinf(self.most_workers) else f", {self.most_workers:g} in all"
        else:
            growth = "none can be added"
        return f"{len(self.nodes)} nodes with {amounts(total)}; {growth}"


def amounts(resources: Resources) -> str:
    """``4 CPUs, 1 GPU``."""
    named = [(resources.get(kind, 0.0), kind) for kind in ("CPU", "GPU")]
    return ", ".join(f"{n:g} {kind}{'' if n == 1 else 's'}" for n, kind in named if n or kind == "CPU")


def training_ask(config: CampaignConfig) -> Ask:
    training = config.training
    gpus = 1.0 if training.use_gpu else 0.0
    each = "training.use_gpu=false" if training.use_gpu else "training.cpus_per_worker"
    count, least = training.num_workers, training.min_workers or training.num_workers
    named = "training.num_workers" if training.min_workers is None else "training.min_workers"
    return Ask("training workers", count, least, training.cpus_per_worker, gpus, f"{named}, {each}")


def sweep_ask(config: CampaignConfig) -> Ask:
    sweep = config.sweep
    each = "sweep.gpus_per_evaluator" if sweep.gpus_per_evaluator else "sweep.cpus_per_evaluator"
    count, gpus = sweep.evaluators, sweep.gpus_per_evaluator
    return Ask("evaluators", count, count, sweep.cpus_per_evaluator, gpus, f"sweep.evaluators, {each}")


def refuse_rollouts(config: CampaignConfig, cluster: Cluster) -> None:
    """Raises ClusterResourceError where evaluators are to answer beside training workers, and a cluster that does not
    grow is too small for both at once."""
    beside = any(entry.rollouts == "evaluators" for domain in config.domains for entry in domain.rounds)
    if not beside or cluster.grows:
        return
    workers, evaluators = training_ask(config), sweep_ask(config)
    for kind in ("CPU", "GPU"):
        wanted = sum(ask.count * ask.each.get(kind, 0.0) for ask in (workers, evaluators))
        there = sum(node.get(kind, 0.0) for node in cluster.nodes)
        if wanted > there:
            raise ClusterResourceError(
                f"rollouts: evaluators wants {evaluators} beside {workers}, {wanted:g} {kind}s in all; the cluster has "
                f"{cluster}. Take rollouts: workers, change {evaluators.settings}, or give the cluster more nodes"
            )


def refuse_impossible(asks: Iterable[Ask], cluster: Cluster) -> None:
    """Raises ClusterResourceError for the first that can never be had, with what can and the settings to change."""
    for ask in asks:
        obtainable = cluster.obtainable(ask)
        if obtainable < ask.least:
            raise ClusterResourceError(
                f"{ask} wanted, there can be {obtainable:g}: the cluster has {cluster}. "
                f"Change {ask.settings}, or give the cluster more or larger nodes"
            )
