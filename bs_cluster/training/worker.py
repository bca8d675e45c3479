"""What each Ray Train worker runs: pull a step from the coordinator, do it, commit, again, until all is done.

One run serves the whole campaign, so a round does not pay for processes and base loading. If a worker dies, Ray
Train starts the group anew; it registers, which fences off the old group, and is handed the unfinished step again.
"""

from __future__ import annotations

import os
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from bs_cluster.config.identity import effective_domain
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.frozen import DomainRows
from bs_cluster.events import DomainClosed, Event, Phase, RoundEnded, RoundStarted
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import CloseDomain, Finished, TrainRound
from bs_cluster.stacks.basis import Basis
from bs_cluster.store.store import Store
from bs_cluster.training.closing import close_domain
from bs_cluster.training.prewarm import compile_operations
from bs_cluster.training.round import train_round
from bs_cluster.training.session import Session, device_of

CALL_TIMEOUT_S = 600


def run_worker(settings: dict[str, Any]) -> None:
    """The per-worker loop. ``settings``: ``config`` (a dict), ``coordinator`` handle, ``rows`` (a reference
    per domain)."""
    config = CampaignConfig.model_validate(settings["config"])
    if config.training.threads_per_worker:
        torch.set_num_threads(config.training.threads_per_worker)
    if not config.training.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        compile_operations()
    coordinator = settings["coordinator"]

    def call(method: str, *args: Any) -> Any:
        return ray.get(getattr(coordinator, method).remote(*args), timeout=CALL_TIMEOUT_S)

    group = _same_on_all_ranks(call("register") if dist.get_rank() == 0 else None)

    def say(event: Event) -> None:
        coordinator.report.remote(event)

    if dist.get_rank() == 0:
        say(Phase(f"{dist.get_world_size()} workers load {config.base.model}"))
    store = Store(config.store.uri, config.campaign)
    stacked = StackedBase.load(config.base, device_of(config))
    opened: dict[str, DomainRows] = {}

    def rows(domain: str) -> DomainRows:
        if domain not in opened:
            opened[domain] = ray.get(settings["rows"][domain], timeout=CALL_TIMEOUT_S)
        return opened[domain]

    session = Session(config, stacked, store, rows, say)
    while True:
        dist.barrier()
        work_item = call("next_step", group)
        step = work_item["step"]
        if isinstance(step, Finished):
            break
        for _, manifest in store.stacks():
            stacked.attach(manifest, store)
        if isinstance(step, TrainRound):
            _train(session, step, work_item["basis"], call, group)
        else:
            _close(session, step, call, group)
    ray.train.report({"stacks": len(stacked.names)})


def _train(session: Session, step: TrainRound, basis: tuple[str, Any] | None, call: Any, group: str) -> None:
    if session.rank == 0:
        session.report(RoundStarted(step.stack, effective_domain(session.config, step.stack.domain).steps or 0))
    fetched = Basis.from_bytes(ray.get(basis[1], timeout=CALL_TIMEOUT_S)) if basis else None
    outcome, manifest = train_round(session, step, fetched)
    if session.rank == 0:
        if manifest is not None:
            call("commit", group, manifest, outcome)
        else:
            call("reject", group, outcome)
        session.report(RoundEnded(outcome))
    dist.barrier()


def _close(session: Session, step: CloseDomain, call: Any, group: str) -> None:
    record = close_domain(session, step, call("outcomes_of", step.domain))
    if session.rank == 0:
        call("close", group, record)
        session.report(DomainClosed(step.domain, record.isolated, record.base_loss))
    dist.barrier()


def _same_on_all_ranks(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
