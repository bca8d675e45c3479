"""A round between two steps: everything that its next step depends on, whole, whatever the number of workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bs_cluster.failpoints import failpoint
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.training.guard import SpikeGuard
from bs_cluster.training.zero import Learner, Tensors

WEIGHTS, BEST, OPTIMIZER = "weights/", "best/", "optimizer/"
FRACTION, BEST_FRACTION = "balance", "best_balance"


@dataclass(frozen=True)
class Snapshot:
    """The stack at its best: step, loss on the selection rows, weights, and the load balance's lagged fractions."""

    step: int
    loss: float
    weights: Tensors
    fraction_PE: torch.Tensor


@dataclass
class RoundState:
    """``step`` counts the optimizer steps made: with the round's seed it says which rows come next and with what noise.
    ``restored_at`` is the step after which the snapshot was last restored, ``seconds`` how long the steps took in all.
    ``history`` has a line a step, with ``selection_loss`` where it was validated."""

    best: Snapshot
    guard: SpikeGuard
    learner: Learner
    balance: LoadBalance
    step: int = 0
    restored_at: int | None = None
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def offer(self, loss: float) -> None:
        """Takes the stack as it is for the best if its loss on the selection rows is finite and the lowest yet."""
        if math.isfinite(loss) and loss < self.best.loss:
            failpoint("training.snapshot")
            self.best = Snapshot(self.step, loss, self.learner.weights(), self.balance.fraction_PE.clone())

    def restore(self) -> None:
        """Back to the best snapshot, with an optimizer that starts anew and a rate that warms up again."""
        self.learner.set_weights(self.best.weights)
        self.learner.forget()
        self.balance.fraction_PE = self.best.fraction_PE.clone()
        self.restored_at = self.step

    def save(self, keep: bool) -> tuple[Tensors, dict[str, Any]]:
        """Tensors by name, and JSON-ready numbers. Every rank calls it; the tensors are there where ``keep``."""
        optimizer = self.learner.state(keep)
        tensors = {}
        if keep:
            tensors = {WEIGHTS + name: tensor for name, tensor in self.learner.weights().items()}
            tensors |= {BEST + name: tensor for name, tensor in self.best.weights.items()}
            tensors |= {OPTIMIZER + name: tensor for name, tensor in optimizer.items()}
            tensors |= {FRACTION: self.balance.fraction_PE.cpu(), BEST_FRACTION: self.best.fraction_PE.cpu()}
        numbers = {
            "step": self.step,
            "restored_at": self.restored_at,
            "seconds": self.seconds,
            "best_step": self.best.step,
            "best_loss": self.best.loss,
            "history": self.history,
            "guard": self.guard.state(),
        }
        return tensors, numbers

    def load(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
        """What ``save`` told, at any number of ranks."""

        def under(prefix: str) -> Tensors:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        device = self.balance.fraction_PE.device
        self.learner.set_weights(under(WEIGHTS))
        self.learner.set_state(under(OPTIMIZER))
        self.balance.fraction_PE = tensors[FRACTION].to(device)
        best_fraction_PE = tensors[BEST_FRACTION].to(device)
        self.best = Snapshot(numbers["best_step"], numbers["best_loss"], under(BEST), best_fraction_PE)
        self.guard.load(numbers["guard"])
        self.step, self.restored_at, self.seconds = numbers["step"], numbers["restored_at"], numbers["seconds"]
        self.history = list(numbers["history"])
