"""Trials of kind ``commit``: a campaign's history without a model. Stacks of a few numbers go through the coordinator
into a real store, and the recorder mirrors it to a real MLflow on sqlite, in one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tiny_campaign import campaign
from tiny_history import bundle_manifest, domain_record, stack_manifest, write_files

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.promote import promote
from bs_cluster.campaign.recorder import Recorder
from bs_cluster.coordinator.coordinator import Coordinator
from bs_cluster.errors import BrainstacksError, DiskError
from bs_cluster.events import DomainClosed, RoundEnded, RoundStarted, StepDone
from bs_cluster.records import CloseDomain, Finished, RoundOutcome, TrainRound
from bs_cluster.store import Store

STEPS = 2
LEARNED = {"loss": 2.0, "load_balance": 1.0, "imbalance": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3}


class Commits:
    """``folder`` holds the store and MLflow's database, and what a worker would have staged."""

    kind, ranks, patience_s, steps = "commit", 1, 90.0, None

    def __init__(self, folder: Path, template: Path):
        self.folder, self.template = folder, template
        self.store = Store(str(folder / "store"), "tiny")
        self.database = folder / "store" / "mlflow.db"

    def begin(self) -> None:
        """An empty MLflow, as ``ensure_database`` makes it."""
        self.database.parent.mkdir(parents=True)
        shutil.copy(self.template / "mlflow.db", self.database)

    def __call__(self) -> int:
        """What the command does; its exit code."""
        try:
            self._history()
        except BrainstacksError as error:
            return told(error)
        except OSError as error:
            return told(DiskError.of(error) or error)
        return 0

    def _history(self) -> None:
        config = campaign(self.template, self.folder / "store", ("aa", "bb"))
        held = Campaign.of(config)
        with Recorder(held, print) as recorder:
            coordinator = Coordinator(config, bytes)
            group, store = coordinator.register(), coordinator.store
            while not isinstance(step := coordinator.next_work(group).step, Finished):
                if isinstance(step, TrainRound):
                    recorder.record(RoundStarted(step.stack, STEPS))
                    recorder.record(StepDone(step.stack, 1, STEPS, 0.1, "go on", **LEARNED))
                    outcome = _round(coordinator, group, step, self.folder / "staged")
                    recorder.record(RoundEnded(outcome))
                else:
                    assert isinstance(step, CloseDomain)
                    coordinator.close(group, domain_record(store, step.domain, step.position))
                    recorder.record(DomainClosed(step.domain, 2.5, 3.0))
            if not store.bundles():
                store.commit_bundle(bundle_manifest(store, served={"aa": 1.5, "bb": 1.6}, answered=4))
            promote(store, store.bundles()[-1][2], config.promotion)
            recorder.finish()


def _round(coordinator: Coordinator, group: str, step: TrainRound, staged: Path) -> RoundOutcome:
    """A stack staged, uploaded and committed, the same bytes every time."""
    store, stack = coordinator.store, step.stack
    seed = 100 * step.position + stack.round
    folder = write_files(staged / stack.name, seed, STEPS, stack=stack, position=step.position)
    lines = [{"step": number, **LEARNED} for number in range(1, STEPS + 1)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store.upload_stack(folder)
    manifest = stack_manifest(store, folder, stack.domain, stack.round, step.position)
    outcome = RoundOutcome(stack, 3.0, 2.5, 0.5, 0.1, 2, True, None, STEPS, 0, 1.5, "improved")
    coordinator.commit(group, manifest, outcome)
    return outcome


def told(error: Any) -> int:
    if not isinstance(error, BrainstacksError):
        raise error
    print(f"{type(error).__name__}: {error}", flush=True)
    return 1
