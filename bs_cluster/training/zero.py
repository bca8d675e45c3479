"""DeepSpeed around one stack: its configuration, its engine's life, and where ZeRO keeps what the stack learns.

The only file that knows DeepSpeed's insides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_set_full_fp32_param
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer

from bs_cluster.config.schema import TrainingSection
from bs_cluster.training.memory import release_memory
from bs_cluster.training.optimizer import Schedule, build_optimizer, forget
from bs_cluster.training.ranks import world_size


def zero_config(training: TrainingSection, ranks: int) -> dict[str, Any]:
    """ZeRO over the learning stack. ``bf16`` stays off: DeepSpeed would cast every floating parameter, and a stack
    learns in fp32 (its products run in the base's compute dtype inside the layer)."""
    zero: dict[str, Any] = {"stage": training.zero_stage, "contiguous_gradients": True, "overlap_comm": False}
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": training.use_gpu}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": training.max_grad_norm,
        "train_micro_batch_size_per_gpu": training.per_device_batch,
        "gradient_accumulation_steps": accumulation(training, ranks),
        "steps_per_print": 1_000_000_000,
    }


def accumulation(training: TrainingSection, ranks: int) -> int:
    """Micro-batches that each rank makes of a global batch. A config whose numbers do not divide is refused."""
    per_pass = training.per_device_batch * ranks
    assert training.global_batch % per_pass == 0, (training.global_batch, training.per_device_batch, ranks)
    return training.global_batch // per_pass


class Learner:
    """The stack that learns under a DeepSpeed engine: step it, read it, set it back."""

    def __init__(self, peft: PeftModel, training: TrainingSection):
        self.parameters: list[nn.Parameter] = [p for p in peft.parameters() if p.requires_grad]
        self._optimizer: Optimizer = build_optimizer(peft.base_model, self.parameters, training)  # type: ignore[arg-type]
        self.schedule = Schedule(self._optimizer, training)
        self.device = self.parameters[0].device
        self._sharded = training.zero_stage > 0
        self._clipped_norm = math.nan
        if not self._sharded:  # without ZeRO, DeepSpeed tells no gradient norm: take the clipped one
            self._optimizer.register_step_pre_hook(self._note_gradient_norm)
        self.engine, *_ = deepspeed.initialize(
            model=_OnlyWhatLearns(peft, self.parameters),
            model_parameters=self.parameters,  # type: ignore[arg-type]  DeepSpeed's own annotation is wrong
            optimizer=self._optimizer,
            lr_scheduler=self.schedule,  # type: ignore[arg-type]  torch's new base class
            config=zero_config(training, world_size()),
            dist_init_required=False,
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Backward of one micro-batch and, with the global batch's last, the optimizer's step. ``loss`` is a share of
        the global batch's mean, so DeepSpeed must not divide by the accumulation again."""
        self.engine.backward(loss, scale_wrt_gas=False)
        self.engine.step()

    def gradient_norm(self) -> float:
        """Of the step just made, over all ranks; before clipping where ZeRO tells it. NaN where it is not finite."""
        norm = self.engine.get_global_grad_norm() if self._sharded else self._clipped_norm
        return math.nan if norm is None else float(norm)

    def weights(self) -> list[torch.Tensor]:
        """A copy of what is learned, on the CPU."""
        return [parameter.detach().cpu().clone() for parameter in self.parameters]

    @torch.no_grad()
    def set_weights(self, weights: Sequence[torch.Tensor]) -> None:
        """The weights and ZeRO's master copies of them."""
        for parameter, saved in zip(self.parameters, weights, strict=True):
            parameter.copy_(saved)
            safe_set_full_fp32_param(parameter, saved.to(parameter.device))

    def start_anew(self) -> None:
        """The optimizer forgets, moments and step, and the rate warms up again: what follows a restore."""
        forget(self._optimizer)
        self.schedule.warm_up_again()

    def _note_gradient_norm(self, *_: Any) -> None:
        self._clipped_norm = float(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))


class _OnlyWhatLearns(nn.Module):
    """What DeepSpeed takes for the model: the learning parameters, in front of all of it.

    DeepSpeed broadcasts whatever its model holds from rank 0, at every start: gigabytes of frozen weights, and a stack
    that one rank has packed in bf16 and another still holds in fp32. It also leaves hooks on it, which here go with it.
    """

    def __init__(self, peft: PeftModel, parameters: Sequence[nn.Parameter]):
        super().__init__()
        self.learning = nn.ParameterList(parameters)
        self._whole = [peft]  # in a list, so that it is no submodule

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self._whole[0](**inputs)


@contextmanager
def learner(peft: PeftModel, training: TrainingSection) -> Iterator[Learner]:
    """A learner for one round. Afterwards nothing of its engine is left, nor of its copies of the weights."""
    base: Any = peft.get_base_model()
    if training.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    made = Learner(peft, training)
    try:
        yield made
    finally:
        made.engine.destroy()
        del made
        if training.gradient_checkpointing:
            base.gradient_checkpointing_disable()
        peft.eval()
        release_memory()
