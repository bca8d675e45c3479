"""A replica's metrics among those of its Ray node, whose exporter shows them to Prometheus as ``ray_bs_cluster_…``
with the replica's name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.serve import metrics

from bs_cluster.serving.metrics import NAMESPACE

Made = metrics.Counter | metrics.Gauge | metrics.Histogram


class RayMetrics:
    """What ``serving.metrics.Metrics`` is made of in a replica."""

    def counter(self, name: str, told: str, labels: Sequence[str] = ()) -> Labelled:
        return Labelled(metrics.Counter(f"{NAMESPACE}_{name}", told, tag_keys(labels)), labels, {})

    def gauge(self, name: str, told: str, labels: Sequence[str] = ()) -> Labelled:
        return Labelled(metrics.Gauge(f"{NAMESPACE}_{name}", told, tag_keys(labels)), labels, {})

    def histogram(self, name: str, told: str, buckets: Sequence[float]) -> Labelled:
        return Labelled(metrics.Histogram(f"{NAMESPACE}_{name}", told, list(buckets)), (), {})

    def text(self) -> bytes:
        return b"# Metrics of replicas are with their Ray nodes' own, as ray_bs_cluster_...\n"


def tag_keys(labels: Sequence[str]) -> Any:
    """As Ray takes them; what it says of their type is that there is one."""
    return tuple(labels)


class Labelled:
    """A metric of Ray's, used as one of Prometheus' client is."""

    def __init__(self, metric: Made, labels: Sequence[str], tags: Mapping[str, str]):
        self._metric, self._labels, self._tags = metric, labels, dict(tags)

    def labels(self, *values: object) -> Labelled:
        return Labelled(self._metric, self._labels, dict(zip(self._labels, map(str, values), strict=True)))

    def inc(self, amount: float = 1.0) -> None:
        assert isinstance(self._metric, metrics.Counter)
        if amount:  # Ray refuses nothing
            self._metric.inc(amount, self._tags)

    def set(self, value: float) -> None:
        assert isinstance(self._metric, metrics.Gauge)
        self._metric.set(value, self._tags)

    def observe(self, value: float) -> None:
        assert isinstance(self._metric, metrics.Histogram)
        self._metric.observe(value, self._tags)

    @contextmanager
    def time(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.observe(time.perf_counter() - started)
