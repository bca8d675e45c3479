"""What does not fit, why, and which settings would change that: each is tried, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.planning.cost import Volume
from bs_cluster.planning.hardware import GB, Hardware
from bs_cluster.planning.memory import Footprint
from bs_cluster.records import Record

SMALLER = "larger GPUs, a smaller stack.rank or stack.experts, fewer training.max_rounds or domains"


@dataclass(frozen=True)
class Remedy(Record):
    """``settings`` as overrides, and the bytes that would then be wanted."""

    settings: str
    wants: int
    fits: bool


@dataclass(frozen=True)
class Misfit(Record):
    """``what`` wants more bytes than it ``has``; ``why`` names its largest parts."""

    what: str
    wants: int
    has: int
    why: str
    remedies: tuple[Remedy, ...]
    otherwise: str


def with_settings(config: CampaignConfig, changes: dict[str, Any]) -> CampaignConfig:
    """The config with these dotted settings, each a section's."""
    sections: dict[str, Any] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        before = sections.get(section, getattr(config, section))
        sections[section] = before.model_copy(update={name: value})
    return config.model_copy(update=sections)


def misfits(
    config: CampaignConfig,
    on: Hardware,
    usable: int,
    worker: Footprint,
    evaluator: Footprint,
    volume: Volume,
    worker_of: Callable[[CampaignConfig], Footprint],
) -> Iterator[Misfit]:
    """Everything of the plan that its machines cannot hold; ``worker_of`` plans a worker under other settings."""
    if worker.peak > usable:
        remedies = tuple(_tried(config, usable, worker_of))
        yield Misfit("a training worker", worker.peak, usable, _largest(worker), remedies, SMALLER)
    share = min(1.0, config.sweep.gpus_per_evaluator) or 1.0
    if evaluator.peak > usable * share:
        less = "a smaller sweep.batch_tokens, larger GPUs" if share == 1 else "sweep.gpus_per_evaluator=1"
        yield Misfit("an evaluator", evaluator.peak, int(usable * share), _largest(evaluator), (), less)
    together = max(1, min(config.training.num_workers, on.node.gpus))
    saved = sum(part.bytes for part in worker.host if "rank 0" in part.name)
    host = (worker.host_peak - saved) * together + saved
    if host > on.node.host_gb * GB:
        why = f"{together} workers on a node: " + ", ".join(f"{p.name} {p.bytes / GB:.1f} GB" for p in worker.host)
        yield Misfit("a node's memory", host, int(on.node.host_gb * GB), why, (), "nodes with more memory")
    if volume.node_disk > on.node.disk_gb * GB:
        why = "the base's files and a copy of every stack"
        yield Misfit("a node's disk", volume.node_disk, int(on.node.disk_gb * GB), why, (), "larger disks")


def _tried(config: CampaignConfig, usable: int, worker_of: Callable[[CampaignConfig], Footprint]) -> Iterator[Remedy]:
    """Settings that make a worker smaller: one after another, then together, up to the first that fit."""
    training, changes = config.training, {}
    ways: list[tuple[str, Any, bool]] = [
        ("base.cache_dequantized", False, config.base.cache_dequantized),
        ("training.gradient_checkpointing", True, not training.gradient_checkpointing),
        ("training.per_device_batch", 1, training.per_device_batch > 1),
        ("training.zero_stage", 2, training.zero_stage < 2),
        ("training.zero_stage", 3, training.zero_stage < 3 and training.num_workers > 1),
        ("training.offload_optimizer", True, not training.offload_optimizer),
    ]
    for key, value, differs in ways:
        if not differs:
            continue
        changes[key] = value
        wants = worker_of(with_settings(config, changes)).peak
        yield Remedy(_overrides(changes), wants, wants <= usable)
        if wants <= usable:
            return


def _overrides(changes: dict[str, Any]) -> str:
    return " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())


def _largest(footprint: Footprint) -> str:
    parts = sorted((*footprint.parts, footprint.largest), key=lambda part: -part.bytes)
    return ", ".join(f"{part.name} {part.bytes / GB:.1f} GB" for part in parts[:4])
