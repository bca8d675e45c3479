"""What each Ray Train worker runs: pull a step from the coordinator, do it, commit, again, until all is done.

One run serves the whole campaign, so a round does not pay for processes and base loading. If a worker dies, Ray
Train starts the group anew; it registers, which fences off the old group, and is handed the unfinished step again.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from bs_cluster.basis import Basis
from bs_cluster.config.identity import settings_of
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.client import REMEDY, Coordination, CoordinatorClient
from bs_cluster.coordinator.work import SharedBasis
from bs_cluster.data.frozen import DomainRows
from bs_cluster.events import DomainClosed, Phase, RoundEnded, RoundStarted
from bs_cluster.failpoints import failpoint
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import CloseDomain, Finished, TrainRound
from bs_cluster.store.store import Store
from bs_cluster.training.closing import close_domain
from bs_cluster.training.preemption import leaving_nodes
from bs_cluster.training.ranks import from_all_ranks
from bs_cluster.training.round import clear_staged, staged_for, train_round
from bs_cluster.training.session import Session, device_of
from bs_cluster.waiting import ROWS_PATIENCE_S, ROWS_REMEDY, wait_for
from bs_cluster.watchdog import watched


def run_worker(settings: dict[str, Any]) -> None:
    """The per-worker loop. ``settings``: ``config`` (a dict), ``coordinator`` (the actor's handle), ``rows`` (a
    reference per domain)."""
    config = CampaignConfig.model_validate(settings["config"])
    if config.training.threads_per_worker:
        torch.set_num_threads(config.training.threads_per_worker)
    coordinator = CoordinatorClient(settings["coordinator"], config.training.answer_timeout_s)
    group = from_all_ranks(coordinator.register() if dist.get_rank() == 0 else None)[0]
    assert group is not None
    if dist.get_rank() == 0:
        count = dist.get_world_size()
        coordinator.report(Phase(f"{count} worker{'s load' if count > 1 else ' loads'} {config.base.model}"))
    store = Store(config.store.uri, config.campaign)
    stacked = StackedBase.load(config.base, device_of(config))
    opened: dict[str, DomainRows] = {}

    def rows(domain: str) -> DomainRows:
        if domain not in opened:
            what = f"the encoded rows of {domain}"
            opened[domain] = wait_for(lambda: settings["rows"][domain], what, ROWS_PATIENCE_S, ROWS_REMEDY)
        return opened[domain]

    session = Session(config, stacked, store, rows, coordinator.report, leaving_nodes)
    who = f"training worker {dist.get_rank()} of {dist.get_world_size()}"
    limit_s = config.training.hang_timeout_s
    with watched(who, limit_s, "training.hang_timeout_s", lambda text: coordinator.report(Phase(text))):
        _work(session, coordinator, group)
    ray.train.report({"stacks": len(stacked.names)})


def _work(session: Session, coordinator: Coordination, group: str) -> None:
    """Step after step until none is left."""
    store, stacked = session.store, session.stacked
    clear_staged(staged_for(session))
    while True:
        dist.barrier()
        work = coordinator.next_work(group)
        if dist.get_rank() == 0:
            store.clear_rounds(under_way=work.step.stack.name if isinstance(work.step, TrainRound) else None)
        if isinstance(work.step, Finished):
            return
        for _, manifest in store.stacks():
            if manifest.stack.name not in stacked.names:
                stacked.attach(manifest, store)
                stacked.keep(())  # one by one: a hundred of them, in fp32 as stored, are more than a device may have
        if isinstance(work.step, TrainRound):
            _train(session, work.step, work.basis, coordinator, group)
        else:
            _close(session, work.step, coordinator, group)


def _train(
    session: Session, step: TrainRound, basis: SharedBasis | None, coordinator: Coordination, group: str
) -> None:
    if session.rank == 0:
        entry = session.config.domain(step.stack.domain).rounds[step.entry]
        steps = settings_of(session.config, step.stack.domain, entry).steps
        session.report(RoundStarted(step.stack, steps))
    fetched = Basis.from_bytes(_bytes_of(basis, session.config)) if basis else None
    outcome, manifest = train_round(session, step, fetched)
    if session.rank == 0:
        if manifest is not None:
            coordinator.commit(group, manifest, outcome)
        else:
            coordinator.reject(group, outcome)
        failpoint("training.acknowledge")
        session.report(RoundEnded(outcome))
    dist.barrier()


def _close(session: Session, step: CloseDomain, coordinator: Coordination, group: str) -> None:
    record = close_domain(session, step, coordinator.outcomes_of(step.domain))
    if session.rank == 0:
        coordinator.close(group, record)
        session.report(DomainClosed(step.domain, record.isolated, record.base_loss))
    dist.barrier()


def _bytes_of(basis: SharedBasis, config: CampaignConfig) -> bytes:
    patience_s = config.training.answer_timeout_s
    return wait_for(lambda: basis.handle, "the directions claimed so far", patience_s, REMEDY)
