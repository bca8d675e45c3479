"""The training phase: a coordinator actor on the head, the worker run beside it, and a driver that watches both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.encoding import encoded
from bs_cluster.campaign.nodes import Room, head_node
from bs_cluster.coordinator.client import CoordinatorClient
from bs_cluster.coordinator.coordinator import Coordinator
from bs_cluster.errors import ClusterResourceError
from bs_cluster.events import Event, Place
from bs_cluster.training.launch import train_campaign
from bs_cluster.waiting import Say

LOOK_EVERY_S = 0.5


def start_coordinator(campaign: Campaign, say: Say) -> CoordinatorClient:
    """The campaign's coordinator as an actor on the head, and nowhere else: no worker node takes it along.

    Ray restarts it with the same arguments; the store has its state.
    """
    actor = ray.remote(Coordinator).options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(head_node()["NodeID"], soft=False),
        name=f"coordinator-{campaign.name}",
        namespace="bs_cluster",
    )
    try:
        handle = actor.remote(campaign.config, ray.put)
    except ValueError as error:  # the name is taken
        raise ClusterResourceError(
            f"campaign {campaign.name} is being trained by another job of this cluster; follow that one, or stop it"
        ) from error
    return CoordinatorClient(handle, campaign.config.training.answer_timeout_s, say)


def train_stacks(
    campaign: Campaign, rows: Mapping[str, ray.ObjectRef], room: Room, on_event: Callable[[Event], None], say: Say
) -> None:
    """Runs the workers to the last domain's closing; ``on_event`` gets every event of theirs, in order."""
    coordinator = start_coordinator(campaign, say)
    failure: list[BaseException] = []

    def decided() -> int:
        return len(campaign.store.stacks()) + len(campaign.store.domains())

    def run() -> None:
        try:
            train_campaign(campaign.config, rows, coordinator.actor, campaign.ray_storage, campaign.ray_run, decided)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="training", daemon=True)
    thread.start()
    seen, have_rows = Place(), False
    while True:
        alive = thread.is_alive()
        for told in coordinator.events_since(seen):
            on_event(told.event)
            seen = told.place
        have_rows = have_rows or encoded(rows)
        if not alive:
            break
        room.look()  # nodes may go while workers run, and not come back
        thread.join(LOOK_EVERY_S)
    if failure:
        raise failure[0]
    coordinator.stop()
