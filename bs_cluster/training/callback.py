"""What happens after each optimizer step: measure, judge, snapshot, restore, tell people."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from deepspeed.utils import safe_set_full_fp32_param
from torch import nn
from transformers import TrainerCallback

from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.events import StepDone
from bs_cluster.inference.scoring import mean_loss
from bs_cluster.records import StackId
from bs_cluster.training.guard import SpikeGuard

if TYPE_CHECKING:
    from bs_cluster.training.session import Session
    from bs_cluster.training.trainer import StackTrainer

Snapshot = list[torch.Tensor]


@dataclass
class RoundCallback(TrainerCallback):
    """Keeps the best finite snapshot by validation loss, starting with the untrained stack (the parent's loss).

    A loss that is not finite, or a spike, restores that snapshot with fresh optimizer moments; ``guard`` ends the
    round after too many in a row. Every decision is made from numbers summed over ranks, so all ranks agree.
    """

    session: Session
    training: TrainingSection
    validation: Sequence[EncodedRow]
    name: str
    guard: SpikeGuard
    best_loss: float
    best: Snapshot = field(default_factory=list)
    best_step: int = 0
    steps_done: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    trainer: StackTrainer | None = None  # set by the round once it exists; callbacks come first
    started: float = field(default_factory=time.monotonic)

    def on_train_begin(self, args, state, control, **_):
        self.best = self._snapshot()
        self.history.append({"step": 0, "val_loss": self.best_loss})

    def on_step_end(self, args, state, control, **_):
        assert self.trainer is not None
        self.steps_done = state.global_step
        line = {"step": float(self.steps_done), **self.trainer.finish_step()}
        # A step whose gradient was not finite has spoiled the weights though its own loss looked well.
        verdict = self.guard.judge(line["loss"] if math.isfinite(line["grad_norm"]) else math.nan)
        if verdict != "go on":
            self._restore(self.best)
            control.should_training_stop = verdict == "stop"
        elif self.steps_done % self.training.eval_every == 0 or self.steps_done == self.training.steps:
            line["val_loss"] = self._validate()
        self.history.append({key: value for key, value in line.items() if math.isfinite(value)})
        self._tell(line, verdict)

    def finish(self) -> None:
        """Leaves the best snapshot in the stack."""
        self._write(self.best)

    def summary(self) -> dict[str, float]:
        """Numbers for the manifest: the last training figures and the step of the best snapshot."""
        last = {key: value for key, value in self.history[-1].items() if key in ("loss", "load_balance", "imbalance")}
        return {f"train_{key}": value for key, value in last.items()} | {"best_step": float(self.best_step)}

    def _validate(self) -> float:
        loss = mean_loss(self.session.score(self.validation))
        if math.isfinite(loss) and loss < self.best_loss:
            self.best_loss, self.best_step, self.best = loss, self.steps_done, self._snapshot()
        return loss

    def _tell(self, line: dict[str, float], verdict: str) -> None:
        if self.session.rank == 0:
            elapsed = time.monotonic() - self.started
            self.session.report(
                StepDone(
                    stack=StackId.parse(self.name),
                    step=self.steps_done,
                    steps=self.training.steps,
                    seconds=elapsed,
                    verdict=verdict,
                    **{key: value for key, value in line.items() if key != "step"},  # type: ignore[arg-type]
                )
            )

    # --- the learning stack's weights, wherever ZeRO keeps them ---------------------------------------------

    def _parameters(self) -> list[nn.Parameter]:
        assert self.trainer is not None
        return self.trainer.learning

    def _snapshot(self) -> Snapshot:
        return [parameter.detach().cpu().clone() for parameter in self._parameters()]

    def _write(self, snapshot: Snapshot) -> None:
        with torch.no_grad():
            for parameter, saved in zip(self._parameters(), snapshot, strict=True):
                parameter.copy_(saved)

    def _restore(self, snapshot: Snapshot) -> None:
        """Weights, ZeRO's master copies and the moments, which a bad step may have filled with NaN."""
        assert self.trainer is not None
        self._write(snapshot)
        for parameter, saved in zip(self._parameters(), snapshot, strict=True):
            safe_set_full_fp32_param(parameter, saved.to(parameter.device))
        # Where ZeRO keeps them: its setter by parameter knows the moments of the first parameter group only.
        for state in self.trainer.adam.state.values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
