"""Trials of kind ``round``: a campaign's training with a real tiny model on two gloo ranks, every step of it as a
worker of Ray Train does them; rank 0 holds the coordinator. Checkpoints come after each step. Of kind ``aligned`` the
first domain goes on with a dpo round and the second with a grpo round.
"""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_alignment import aligned, tiny_round
from tiny_campaign import campaign

from bs_cluster.basis import Basis
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.encoding import encode_domains
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.coordinator import Coordinator
from bs_cluster.errors import BrainstacksError, DiskError
from bs_cluster.events import Event, StepDone
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.quiet import quieten
from bs_cluster.records import Finished, TrainRound
from bs_cluster.store import Store
from bs_cluster.training.closing import close_domain
from bs_cluster.training.ranks import from_all_ranks
from bs_cluster.training.round import clear_staged, staged_for, train_round
from bs_cluster.training.session import Session
from chaos.commit import told

TRAINING = {"steps": 4, "max_rounds": 1, "eval_every": 2, "checkpoint_every_s": 1e-6}
COLLECTIVE_TIMEOUT = timedelta(seconds=60)


class Rounds:
    kind, ranks, patience_s = "round", 2, 120.0

    def __init__(self, folder: Path, template: Path):
        self.folder, self.template = folder, template
        self.store = Store(str(folder / "store"), "tiny")
        self.database = folder / "store" / "mlflow.db"  # there is none: the driver writes it
        self.steps = folder / "steps.jsonl"

    def begin(self) -> None:
        self.folder.mkdir(parents=True)

    def __call__(self) -> int:
        rank = int(os.environ["RANK"])
        os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        quieten()
        torch.set_num_threads(1)
        meeting = f"file://{os.environ['CHAOS_MEETING']}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=COLLECTIVE_TIMEOUT)
        try:
            self._train()
        except BrainstacksError as error:
            return told(error)
        except OSError as error:
            return told(DiskError.of(error) or error)
        return 0

    def config(self) -> CampaignConfig:
        exact = {"compute_dtype": "float32"}
        return campaign(self.template, self.folder / "store", ("aa", "bb"), training=TRAINING, base=exact)

    def _train(self) -> None:
        config = self.config()
        rows = encode_domains(Campaign.of(config))
        stacked = StackedBase.load(config.base, "cpu")
        session = Session(config, stacked, self.store, rows.__getitem__, self._report)
        clear_staged(staged_for(session))
        coordinator = Coordinator(config, bytes) if session.rank == 0 else None
        group = coordinator.register() if coordinator else ""
        while True:
            work = from_all_ranks(coordinator.next_work(group) if coordinator else None)[0]
            assert work is not None
            step = work.step
            if coordinator:
                self.store.clear_rounds(under_way=step.stack.name if isinstance(step, TrainRound) else None)
            if isinstance(step, Finished):
                return
            for _, manifest in self.store.stacks():
                stacked.attach(manifest, self.store)
            if isinstance(step, TrainRound):
                outcome, manifest = train_round(
                    session, step, Basis.from_bytes(work.basis.handle) if work.basis else None
                )
                if coordinator and manifest:
                    coordinator.commit(group, manifest, outcome)
                elif coordinator:
                    coordinator.reject(group, outcome)
            else:
                outcomes = from_all_ranks(coordinator.outcomes_of(step.domain) if coordinator else None)[0]
                record = close_domain(session, step, outcomes or [])
                if coordinator:
                    coordinator.close(group, record)
            dist.barrier()

    def _report(self, event: Event) -> None:
        if isinstance(event, StepDone):
            with self.steps.open("a") as file:
                file.write(json.dumps([event.stack.name, event.step, time.time()]) + "\n")


class AlignedRounds(Rounds):
    kind = "aligned"

    def config(self) -> CampaignConfig:
        dpo, grpo = (tiny_round(self.template, kind) for kind in ("dpo", "grpo"))
        return aligned(super().config(), {"aa": dpo, "bb": grpo})
