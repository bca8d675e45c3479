"""A replica's metrics among those of its Ray node, whose exporter shows them to Prometheus as ``ray_bs_cluster_…``
with the replica's name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray.serve import metrics

from bs_cluster.gauges import StandingGauges
from bs_cluster.serving.metrics import NAMESPACE

Made = metrics.Counter | metrics.Gauge | metrics.Histogram


class RayMetrics:
    """What ``serving.metrics.Metrics`` is made of in a replica, for the life of its process."""

    def __init__(self) -> None:
        self._standing = StandingGauges()

    def counter(self, name: str, told: str, labels: Sequence[str] = ()) -> Labelled:
        return self._labelled(metrics.Counter(f"{NAMESPACE}_{name}", told, tag_keys(labels)), labels)

    def gauge(self, name: str, told: str, labels: Sequence[str] = ()) -> Labelled:
        return self._labelled(metrics.Gauge(f"{NAMESPACE}_{name}", told, tag_keys(labels)), labels)

    def histogram(self, name: str, told: str, buckets: Sequence[float]) -> Labelled:
        return self._labelled(metrics.Histogram(f"{NAMESPACE}_{name}", told, list(buckets)), ())

    def text(self) -> bytes:
        return b"# Metrics of replicas are with their Ray nodes' own, as ray_bs_cluster_...\n"

    def _labelled(self, metric: Made, labels: Sequence[str]) -> Labelled:
        return Labelled(metric, tuple(labels), {}, self._standing)


def tag_keys(labels: Sequence[str]) -> Any:
    """As Ray takes them; what it says of their type is that there is one."""
    return tuple(labels)


@dataclass(frozen=True)
class Labelled:
    """A metric of Ray's, used as one of Prometheus' client is."""

    metric: Made
    names: Sequence[str]
    tags: Mapping[str, str]
    standing: StandingGauges

    def labels(self, *values: object) -> Labelled:
        return replace(self, tags=dict(zip(self.names, map(str, values), strict=True)))

    def inc(self, amount: float = 1.0) -> None:
        assert isinstance(self.metric, metrics.Counter)
        if amount:  # Ray refuses nothing
            self.metric.inc(amount, dict(self.tags))

    def set(self, value: float) -> None:
        assert isinstance(self.metric, metrics.Gauge)
        self.standing.set(self.metric, value, self.tags)

    def observe(self, value: float) -> None:
        assert isinstance(self.metric, metrics.Histogram)
        self.metric.observe(value, dict(self.tags))

    @contextmanager
    def time(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.observe(time.perf_counter() - started)
