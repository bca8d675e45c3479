"""The one place that knows an optimizer: how it is built, and how its state is forgotten, whatever it keeps.

Another one is a function of the parameter groups and the settings, under a name that ``training.optimizer`` takes:

    OPTIMIZERS["lion"] = lambda groups, training: Lion(groups, weight_decay=training.weight_decay)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from bs_cluster.config.schema import TrainingSection
from bs_cluster.errors import ConfigError
from bs_cluster.stacks.model import StackModel

Group = dict[str, Any]


def _adamw(groups: list[Group], training: TrainingSection) -> Optimizer:
    fused = groups[0]["params"][0].is_cuda
    return torch.optim.AdamW(groups, weight_decay=training.weight_decay, fused=fused)


OPTIMIZERS: dict[str, Callable[[list[Group], TrainingSection], Optimizer]] = {"adamw": _adamw}


def build_optimizer(tuner: StackModel, learning: Sequence[nn.Parameter], training: TrainingSection) -> Optimizer:
    """The configured optimizer; B may have its own rate (LoRA+, arXiv 2402.12354). Raises ConfigError for a name that
    nobody registered."""
    build = OPTIMIZERS.get(training.optimizer)
    if build is None:
        known = ", ".join(sorted(OPTIMIZERS))
        raise ConfigError([f"training.optimizer = {training.optimizer!r}: no such optimizer; there are {known}"])
    is_b = {id(parameter) for site in tuner.sites for parameter in site.stack_B.values()}
    rest = [parameter for parameter in learning if id(parameter) not in is_b]
    b = [parameter for parameter in learning if id(parameter) in is_b]
    rate = training.learning_rate
    return build([{"params": rest, "lr": rate}, {"params": b, "lr": rate * training.b_lr_ratio}], training)


def forget(optimizer: Optimizer) -> None:
    """All state back to its start, in place: moments *and* the step that their bias correction divides by. Moments
    without it make the next updates three to five times the rate."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                value.zero_()
            elif isinstance(value, int | float):
                state[name] = type(value)(0)


class Schedule(LambdaLR):
    """The library's schedule of the rate, and a new warm-up after a restore.

    No step is made at a rate of zero: the first is one part of the warm-up, the last one part of the way down.
    """

    def __init__(self, optimizer: Optimizer, training: TrainingSection):
        library = get_scheduler(
            training.scheduler, optimizer, num_warmup_steps=training.warmup_steps, num_training_steps=training.steps + 1
        )
        assert isinstance(library, LambdaLR)
        self._factor = library.lr_lambdas[0]
        self._again = max(1, min(training.warmup_steps, training.steps // 10))
        self.restored_at: int | None = None
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Share of the full rate for optimizer step ``step`` (from 0)."""
        again = 1.0 if self.restored_at is None else min(1.0, (step - self.restored_at + 1) / (self._again + 1))
        return self._factor(step + 1) * again

    def warm_up_again(self) -> None:
        """From the next step on, as after a restore."""
        self.restored_at = self.last_epoch
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
