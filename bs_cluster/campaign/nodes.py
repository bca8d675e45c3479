"""The nodes of the cluster that this driver is connected to: those there, those that may come, and waiting for them."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bs_cluster.campaign.resources import Ask, Cluster, NodeType
from bs_cluster.errors import ClusterResourceError
from bs_cluster.waiting import SAY_EVERY_S, Say, wait_for

HEAD = "node:__internal_head__"  # the resource by which Ray marks its head
READONLY_TYPE = "node_"
UNAVAILABLE = "unavailable_node_information"
LOOK_EVERY_S = 5.0
ASK_HEAD_S = 120.0


def head_node() -> dict[str, Any]:
    """Ray's entry of the head, which every cluster has."""
    return next(node for node in _alive() if HEAD in node["Resources"])


def read_cluster() -> Cluster:
    """What there is, and what the cluster's own autoscaler, if it has one, may add."""
    cluster = Cluster(head_node()["Resources"], _resources())
    told = state.get_cluster_config()  # where a platform's autoscaler tells Ray its node groups
    if told is not None and told.node_group_configs:
        groups = [NodeType(g.name, dict(g.resources), _most(g.max_count)) for g in told.node_group_configs]
        return dataclasses.replace(cluster, types=tuple(group for group in groups if group.most))
    here = NodeAffinitySchedulingStrategy(head_node()["NodeID"], soft=False)
    look = ray.remote(_autoscaler_file).options(num_cpus=0, scheduling_strategy=here)
    address = ray.get_runtime_context().gcs_address
    found = wait_for(lambda: look.remote(address), "the head's autoscaler settings", ASK_HEAD_S, "free the head")
    if found is None:
        return dataclasses.replace(cluster, unseen=_scales_from_outside())
    kinds = found["available_node_types"]
    most_workers = found.get("max_workers", math.inf)
    types = [
        NodeType(name, kind.get("resources", {}), kind.get("max_workers", most_workers))
        for name, kind in kinds.items()
        if name != found["head_node_type"]
    ]
    return dataclasses.replace(
        cluster, types=tuple(kind for kind in types if kind.most), most_workers=float(most_workers)
    )


class Room:
    """Watches whether the living nodes can hold what is asked for."""

    def __init__(self, ask: Ask, cluster: Cluster, timeout_s: float, say: Say):
        self.ask, self.cluster, self.timeout_s, self.say = ask, cluster, timeout_s, say
        self.looked = self.said = self.lacking_since = -math.inf
        self.there = False

    def look(self) -> bool:
        """Whether there is room. While there is none, a line every thirty seconds says what is missing and what is on
        its way. Raises ClusterResourceError after ``timeout_s`` of it."""
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY_S:
            return self.there
        self.looked = now
        self.cluster = dataclasses.replace(self.cluster, nodes=_resources())
        have = self.cluster.has_room(self.ask)
        if have >= self.ask.least:
            self.there, self.lacking_since = True, -math.inf
            return True
        if math.isinf(self.lacking_since):
            self.lacking_since = now
        self.there = False
        waited = now - self.lacking_since
        if waited >= self.timeout_s:
            raise ClusterResourceError(
                f"waited {waited:.0f} s for {self.ask}, {have} came: the cluster has {self.cluster}; {autoscaler()}. "
                f"Raise training.start_timeout_s or change {self.ask.settings}"
            )
        if now - self.said >= SAY_EVERY_S:
            self.said = now
            self.say(
                f"waiting for nodes: room for {have} of {self.ask}; {autoscaler()}; "
                f"{waited:.0f} of {self.timeout_s:g} s"
            )
        return False


@contextmanager
def nodes_for(ask: Ask, cluster: Cluster, timeout_s: float, say: Say) -> Iterator[Room]:
    """Asks the autoscaler, if there is one, for the nodes that ``ask`` needs, waits for them, and holds them as long as
    the context lasts; after it they may idle out. Raises as ``Room.look`` does."""
    room = Room(ask, cluster, timeout_s, say)
    if cluster.grows:
        request_resources(bundles=[ask.each] * ask.count)
    try:
        while not room.look():
            time.sleep(LOOK_EVERY_S)
        yield room
    finally:
        if cluster.grows:
            request_resources(bundles=[])


@dataclass(frozen=True)
class Autoscaler:
    """What the cluster's autoscaler says of itself: the types of living nodes, nodes on their way, and failures."""

    types: frozenset[str] = frozenset()
    pending: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = f"pending: {', '.join(self.pending)}" if self.pending else "no node is pending"
        return words + (f"; failed: {', '.join(self.failed)}" if self.failed else "")


def autoscaler() -> Autoscaler:
    """Asked of the GCS: the older autoscaler (the cluster launcher's) leaves a JSON there, the newer one a record."""
    told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = json.loads(told).get("autoscaler_report") if told else None
    if report is not None:
        launches = [f"{count} {kind}" for kind, count in report["pending_launches"].items()]
        starting = [f"{kind} ({status})" for _, kind, status in report["pending_nodes"]]
        failed = [f"{kind} at {address}" for address, kind in report["failed_nodes"]]
        refused = report["node_availability_summary"].get("node_availabilities", {}).values()
        reasons = [f"{one['node_type']}: {why['category']}" for one in refused if (why := one[UNAVAILABLE])]
        return Autoscaler(frozenset(report["active_nodes"]), (*starting, *launches), (*failed, *reasons))
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return Autoscaler(
        types=frozenset(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)),
        pending=(
            *(f"{node.ray_node_type_name} ({node.details})" for node in status.pending_nodes),
            *(f"{launch.count} {launch.ray_node_type_name}" for launch in status.pending_launches),
        ),
        failed=tuple(f"{launch.ray_node_type_name}: {launch.details}" for launch in status.failed_launches),
    )


def _scales_from_outside() -> bool:
    """Whether an autoscaler manages this cluster from where its settings cannot be read (KubeRay's side container).
    Ray's monitor of a cluster that does not scale shows nodes as types of their own, named after the node."""
    return any(kind and not kind.startswith(READONLY_TYPE) for kind in autoscaler().types)


def _autoscaler_file(gcs_address: str) -> dict[str, Any] | None:
    """Runs on the head: the settings of the autoscaler that serves this cluster."""
    flag = "--autoscaling-config="
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:  # it ended meanwhile, or is another's
            continue
        files = [word.removeprefix(flag) for word in words if word.startswith(flag)]
        if files and any(gcs_address in word for word in words):
            return yaml.safe_load(Path(files[0]).expanduser().read_text())
    return None


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _resources() -> tuple[dict[str, float], ...]:
    return tuple(node["Resources"] for node in _alive())


def _most(count: int) -> float:
    return math.inf if count < 0 else float(count)
