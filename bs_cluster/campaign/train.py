"""The training phase: a coordinator actor, the worker run beside it, and a driver that watches both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray

from bs_cluster.campaign.encoding import raise_early
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.coordinator import Coordinator
from bs_cluster.errors import ClusterResourceError
from bs_cluster.events import Event
from bs_cluster.training.launch import Plan, train_campaign

LOOK_EVERY_S = 0.5
START_TIMEOUT_S = 120.0


def start_coordinator(config: CampaignConfig) -> Any:
    """The campaign's coordinator as an actor on the head; Ray restarts it with the same arguments, the store has its
    state."""
    actor = ray.remote(Coordinator).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, name=f"coordinator-{config.campaign}", namespace="bs_cluster"
    )
    try:
        return actor.remote(config, ray.put)
    except ValueError as error:  # the name is taken
        raise ClusterResourceError(
            f"campaign {config.campaign} is being trained by another job of this cluster; follow that one, or stop it"
        ) from error


def train_stacks(
    config: CampaignConfig,
    plan: Plan,
    rows: Mapping[str, ray.ObjectRef],
    coordinator: Any,
    storage: str,
    on_event: Callable[[Event], None],
) -> None:
    """Runs the workers to the last domain's closing; ``on_event`` gets every event of theirs, in order."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            train_campaign(config, plan, rows, coordinator, storage)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="training", daemon=True)
    thread.start()
    seen = 0
    while True:
        alive = thread.is_alive()
        for told in ray.get(coordinator.events_since.remote(seen), timeout=START_TIMEOUT_S):
            on_event(told.event)
            seen = told.number
        raise_early(rows)
        if not alive:
            break
        thread.join(LOOK_EVERY_S)
    if failure:
        raise failure[0]
