"""Trials with Ray around them, on a cluster that they share: kind ``campaign`` from the first step on, kind ``measure``
from where the control's training had ended. The command is the user's own, in a process that has its imports already.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import job
from tiny_campaign import settings

from bs_cluster.cli.main import main
from bs_cluster.store import Store
from chaos import process

ONE = {"num_workers": 1, "steps": 4, "max_rounds": 1, "eval_every": 2, "checkpoint_every_s": 1e-6}


def tiny_settings(template: Path, store: Path) -> dict:
    """A worker, an evaluator and two domains of one round each."""
    return settings(
        template,
        store,
        ("aa", "bb"),
        training=ONE,
        sweep={"evaluators": 1},
        base={"compute_dtype": "float32"},
    )


class Campaigns:
    kind, ranks, patience_s, steps = "campaign", 1, 300.0, None

    def __init__(self, folder: Path, template: Path):
        self.folder, self.template = folder, template
        self.store = Store(str(folder / "store"), "tiny")
        self.database = folder / "store" / "mlflow.db"

    @property
    def config(self) -> Path:
        return self.folder / "tiny.yaml"

    def begin(self) -> None:
        self.folder.mkdir(parents=True)
        job.write_config(self.config, tiny_settings(self.template, self.folder / "store"))

    def __call__(self) -> int:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        return main(["run", "--config", str(self.config)])


class Measures(Campaigns):
    kind = "measure"

    def begin(self) -> None:
        trained = self.folder.with_name("trained")
        if not trained.exists():
            super().begin()
            marks = self.folder / "marks"
            end = process.run(self, self.folder / "log", "sweep.dispatch=kill@1", marks, self.patience_s)
            assert end.how == "killed", end.log
            shutil.rmtree(marks)
            self.folder.rename(trained)
        shutil.copytree(trained, self.folder)
