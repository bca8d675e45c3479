"""The function Ray Train ships to workers. Light to import: the driver must not load DeepSpeed to name it."""

from __future__ import annotations

from typing import Any

from bs_cluster.quiet import quieten


def run_worker(settings: dict[str, Any]) -> None:
    quieten()
    from bs_cluster.training.worker import run_worker as run  # noqa: PLC0415  # heavy, and only of use on a worker

    run(settings)
