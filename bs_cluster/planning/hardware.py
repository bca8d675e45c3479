"""The machines that a plan counts with: ``hardware.yaml``, or a copy of it that a user has edited."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bs_cluster.config import yaml12
from bs_cluster.config.conflicts import did_you_mean
from bs_cluster.errors import IntegrityError, UsageError
from bs_cluster.records import Record

SHIPPED = Path(__file__).with_name("hardware.yaml")
GB = 1e9


@dataclass(frozen=True)
class Node(Record):
    """A kind of node. ``memory_gb`` is a GPU's, or with no ``gpus`` the machine's; the rest is said in the file."""

    name: str
    gpus: int
    memory_gb: float
    tflops: float
    bandwidth_gb_s: float
    host_gb: float
    disk_gb: float
    network_gbit: float
    usd_hour: float


@dataclass(frozen=True)
class Assumed(Record):
    """What no data sheet says; see the file."""

    compute_share: float
    bandwidth_share: float
    reserved_gb: float
    fragmentation: float
    freed_kept: float
    start_minutes: float
    router_minutes: float


@dataclass(frozen=True)
class Hardware:
    """A node and what is assumed of it."""

    node: Node
    assumed: Assumed

    @property
    def flops(self) -> float:
        """Of a worker, a second, as reached."""
        return self.node.tflops * 1e12 * self.assumed.compute_share

    @property
    def memory_bandwidth(self) -> float:
        """Bytes a second of a worker, as reached."""
        return self.node.bandwidth_gb_s * GB * self.assumed.bandwidth_share

    @property
    def network_bandwidth(self) -> float:
        """Bytes a second of a node, as reached."""
        return self.node.network_gbit * GB / 8 * self.assumed.bandwidth_share

    def usable(self, workers: int) -> int:
        """Bytes that a worker's tensors may hold: a GPU's, or its share of a machine that has none."""
        gpu = self.node.gpus > 0
        lost = self.assumed.fragmentation if gpu else self.assumed.freed_kept
        return int((self.node.memory_gb / (1 if gpu else workers) - self.assumed.reserved_gb) * GB / (1 + lost))


def hardware(name: str, file: str | None = None) -> Hardware:
    """The node of this name. Raises UsageError for one that the file does not have, and for a file that is none."""
    path = file or str(SHIPPED)
    told = yaml12.parse(yaml12.read(path), path)
    nodes: dict[str, Any] = told.get("nodes", {}) if isinstance(told, dict) else {}
    if name not in nodes:
        raise UsageError(f"--on {name}: no such node{did_you_mean(name, nodes) or '; there are ' + ', '.join(nodes)}")
    try:
        return Hardware(Node.from_dict({"name": name, **nodes[name]}), Assumed.from_dict(told["assumed"]))
    except (IntegrityError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: {name}: {error}; {SHIPPED} shows what is wanted") from error


def default_node(gpu: bool) -> str:
    return "8xH100" if gpu else "cpu"
