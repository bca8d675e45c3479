"""What Prometheus is told. No label and no value holds anything of a prompt or an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

NAMESPACE = "bs_cluster"
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Kind(Protocol):
    """Who is told: makes counters, gauges and histograms with the methods of Prometheus' own client."""

    def counter(self, name: str, told: str, labels: Sequence[str] = ()) -> Any: ...
    def gauge(self, name: str, told: str, labels: Sequence[str] = ()) -> Any: ...
    def histogram(self, name: str, told: str, buckets: Sequence[float]) -> Any: ...
    def text(self) -> bytes: ...


class Prometheus:
    """Metrics of this process alone, with a registry of their own, as ``/metrics`` shows them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._of = {"registry": self._registry, "namespace": NAMESPACE}

    def counter(self, name: str, told: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, told, labels, **self._of)

    def gauge(self, name: str, told: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, told, labels, **self._of)

    def histogram(self, name: str, told: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, told, buckets=buckets, **self._of)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Metrics:
    """One server's."""

    def __init__(self, kind: Kind) -> None:
        self.text = kind.text
        self.requests = kind.counter("requests", "Requests by model and HTTP status", ("model", "status"))
        self.tokens = kind.counter("tokens", "Tokens read and generated", ("kind",))
        self.fired = kind.counter("gate_weight", "Sum of gate weights of answered prompts", ("domain",))
        self.reloads = kind.counter("reloads", "Changes of what is served, by outcome", ("outcome",))
        self.running = kind.gauge("running_requests", "Requests that have a slot")
        self.waiting = kind.gauge("waiting_requests", "Requests that wait for a slot")
        self.resident = kind.gauge("resident_stacks", "Stacks in memory")
        self.bundle = kind.gauge("bundle", "Number of the bundle that is served", ("alias",))
        self.routing_seconds = kind.histogram("routing_seconds", "A meta-router's decision", FAST)
        self.stack_seconds = kind.histogram("stack_seconds", "Reading a stack that is to fire from the store", FAST)
        self.prompt_seconds = kind.histogram("prompt_seconds", "Reading prompts that join", FAST)
        self.step_seconds = kind.histogram("step_seconds", "A token for every running request", FAST)
        self.first_token_seconds = kind.histogram("first_token_seconds", "From request to token", SLOW)
        self.request_seconds = kind.histogram("request_seconds", "From request to end of answer", SLOW)
