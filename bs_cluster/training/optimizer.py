"""The one place that knows an optimizer: how it is built, at what rate it steps, and its state, whatever it keeps.

Another one is a function of the parameter groups and the settings that a package names by an entry point:

    [project.entry-points."bs_cluster.optimizers"]
    lion = "my_package.lion:build"       # training.optimizer: lion

    def build(groups, training):
        return Lion(groups, weight_decay=training.weight_decay)

For each parameter it keeps tensors of that parameter's shape and numbers that hold for all of it, such as a step; it
makes them at its first step. ZeRO gives it flat slices in place of parameters: it cannot know rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import get_scheduler

from bs_cluster.config import plugins
from bs_cluster.config.schema import TrainingSection

Group = dict[str, Any]
Build = Callable[[list[Group], TrainingSection], Optimizer]


def _adamw(groups: list[Group], training: TrainingSection) -> Optimizer:
    fused = groups[0]["params"][0].is_cuda
    return torch.optim.AdamW(groups, weight_decay=training.weight_decay, fused=fused)


BUILT_IN: Mapping[str, Build] = {"adamw": _adamw}


def build_optimizer(learning: Mapping[str, nn.Parameter], training: TrainingSection) -> Optimizer:
    """The configured optimizer over parameters by name; those of a ``stack_B`` may have a rate of their own (LoRA+,
    arXiv 2402.12354)."""
    build = BUILT_IN.get(training.optimizer) or cast(Build, plugins.load(plugins.OPTIMIZERS, training.optimizer))
    rest = [parameter for name, parameter in learning.items() if not name.endswith("stack_B")]
    b = [parameter for name, parameter in learning.items() if name.endswith("stack_B")]
    groups = [(rest, training.learning_rate), (b, training.learning_rate * training.b_lr_ratio)]
    return build([{"params": parameters, "lr": rate} for parameters, rate in groups if parameters], training)


class Rate:
    """The learning rate: the library's curve, and a new warm-up after a restore.

    A function of the step and of the last restore alone, so that a round taken up again needs no more than those. No
    step is made at a rate of zero: the first is one part of the warm-up, the last one part of the way down.
    """

    def __init__(self, optimizer: Optimizer, training: TrainingSection):
        self._optimizer = optimizer
        self._full = [group["lr"] for group in optimizer.param_groups]
        library = get_scheduler(
            training.scheduler, optimizer, num_warmup_steps=training.warmup_steps, num_training_steps=training.steps + 1
        )
        self._curve: Callable[[int], float] = library.lr_lambdas[0]  # type: ignore[attr-defined]
        self._again = max(1, min(training.warmup_steps, training.steps // 10))

    def factor(self, step: int, restored_at: int | None) -> float:
        """Share of the full rate in step ``step`` (from 1), the last restore having come after step ``restored_at``."""
        again = 1.0 if restored_at is None else min(1.0, (step - restored_at) / (self._again + 1))
        return self._curve(step) * again

    def set(self, step: int, restored_at: int | None) -> float:
        """Sets it in the optimizer; returns the first group's."""
        factor = self.factor(step, restored_at)
        for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
            group["lr"] = full * factor
        return self._full[0] * factor


# --- state ----------------------------------------------------------------------------------------------------------


def forget(optimizer: Optimizer) -> None:
    """All state back to its start, in place: moments *and* the step that their bias correction divides by. Moments
    without it make the next updates three to five times the rate."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                value.zero_()
            elif isinstance(value, int | float):
                state[name] = type(value)(0)


Sizes = Mapping[str, torch.Size]  # parameters that lie end to end in what an optimizer steps, in order


def whole_state(
    optimizer: Optimizer, stepped: torch.Tensor, sizes: Sizes, whole: Callable[[torch.Tensor], torch.Tensor], keep: bool
) -> dict[str, torch.Tensor]:
    """State of the parameters that lie in ``stepped``, as ``<parameter>.<key>``; empty unless ``keep``.

    ``whole`` puts this rank's part of a tensor and the others' together (a collective). A number that holds for all of
    them is told for each, so that nothing depends on who held which part.
    """
    state: dict[str, torch.Tensor] = {}
    for key, value in sorted(optimizer.state[stepped].items()):
        elementwise = isinstance(value, torch.Tensor) and value.shape == stepped.shape
        values = whole(value).flatten() if elementwise else torch.as_tensor(value)
        place = 0
        for name, size in sizes.items() if keep else ():
            part = values[place : place + size.numel()].view(size) if elementwise else values
            state[f"{name}.{key}"] = part.detach().cpu().clone()
            place += size.numel()
    return state


def load_state(
    optimizer: Optimizer,
    slices: list[tuple[torch.Tensor, Sizes]],
    state: Mapping[str, torch.Tensor],
    part: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Sets what ``whole_state`` told of every slice; ``part`` cuts this rank's part for a slice out of a whole."""
    loaded: dict[int, dict[str, torch.Tensor]] = {}
    for number, (stepped, sizes) in enumerate(slices):
        first, size = next(iter(sizes.items()))
        for key in [name.removeprefix(f"{first}.") for name in state if name.startswith(f"{first}.")]:
            told = state[f"{first}.{key}"]
            if told.shape == size:
                told = part(torch.cat([state[f"{name}.{key}"].flatten() for name in sizes]), stepped)
                told = told.view(stepped.shape)
            loaded.setdefault(number, {})[key] = told.clone()
    optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})
