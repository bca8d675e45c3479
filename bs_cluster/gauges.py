"""Gauges of Ray's that stand as they were set last. Ray by itself forgets one that was not set for two intervals of
its exporter, twenty seconds by default, and Prometheus then sees none."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ray.util.metrics import Gauge

TOLD_AGAIN_S = 1.0

Tags = tuple[tuple[str, str], ...]


class StandingGauges:
    """Tells Ray again what it was told, until ``close``, or the end of the process."""

    def __init__(self) -> None:
        self._standing: dict[tuple[Gauge, Tags], float] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._teller = threading.Thread(target=self._tell_again, name="gauges", daemon=True)
        self._teller.start()

    def close(self) -> None:
        self._closed.set()
        self._teller.join()

    def set(self, gauge: Gauge, value: float, tags: Mapping[str, str]) -> None:
        with self._lock:  # also around Ray: an older value must not come after a newer one
            self._standing[gauge, tuple(tags.items())] = value
            gauge.set(value, dict(tags))

    def forget(self, tag: str, value: str) -> None:
        """Those with that value of that tag: Ray forgets them after two of its intervals."""
        with self._lock:
            self._standing = {key: last for key, last in self._standing.items() if (tag, value) not in key[1]}

    def _tell_again(self) -> None:
        while not self._closed.wait(TOLD_AGAIN_S):
            with self._lock:
                for (gauge, tags), value in self._standing.items():
                    gauge.set(value, dict(tags))
