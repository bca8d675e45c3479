"""What Prometheus is told. No label and no value holds anything of a prompt or an answer."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """One server's; each has a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        of = {"registry": self._registry, "namespace": "bs_cluster"}
        self.requests = Counter("requests", "Requests by model and HTTP status", ("model", "status"), **of)
        self.tokens = Counter("tokens", "Tokens read and generated", ("kind",), **of)
        self.fired = Counter("gate_weight", "Sum of gate weights of answered prompts", ("domain",), **of)
        self.reloads = Counter("reloads", "Changes of what is served, by outcome", ("outcome",), **of)
        self.running = Gauge("running_requests", "Requests that have a slot", **of)
        self.waiting = Gauge("waiting_requests", "Requests that wait for a slot", **of)
        self.bundle = Gauge("bundle", "Number of the bundle that is served", ("alias",), **of)
        self.routing_seconds = Histogram("routing_seconds", "A meta-router's decision", buckets=FAST, **of)
        self.prompt_seconds = Histogram("prompt_seconds", "Reading prompts that join", buckets=FAST, **of)
        self.step_seconds = Histogram("step_seconds", "A token for every running request", buckets=FAST, **of)
        self.first_token_seconds = Histogram("first_token_seconds", "From request to token", buckets=SLOW, **of)
        self.request_seconds = Histogram("request_seconds", "From request to end of answer", buckets=SLOW, **of)

    def text(self) -> bytes:
        return generate_latest(self._registry)
