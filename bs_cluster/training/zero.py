"""DeepSpeed around one stack: its engine's life, and where ZeRO keeps what the stack learns.

The only file that knows DeepSpeed's insides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from torch import nn
from torch.optim import Optimizer

from bs_cluster.config.schema import TrainingSection
from bs_cluster.stacks.model import StackModel
from bs_cluster.training.memory import release_memory
from bs_cluster.training.optimizer import Rate, Sizes, build_optimizer, forget, load_state, whole_state
from bs_cluster.training.ranks import gather_parts, world_rank, world_size
from bs_cluster.training.sharding import learning_parameters, zero_config

Tensors = dict[str, torch.Tensor]
# Of use in inference alone, and a CPU node would compile it first: not to be had, says DeepSpeed's own table.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class LearningModel(nn.Module):
    """What DeepSpeed is given: the learning parameters, and the forward that they make together with all the rest.

    The model is no submodule of it. So nothing that is frozen is broadcast or counted, and DeepSpeed's hooks, which
    would keep a round's engine alive, hang on this module and go with it.
    """

    def __init__(self, tuner: StackModel, learning: Mapping[str, nn.Parameter]):
        super().__init__()
        self.learning = nn.ParameterList(learning.values())
        self.whole = tuner.forward

    def forward(self, **inputs: Any) -> Any:
        """The tuner's: with ``completion_labels`` the loss of each label, (N,)."""
        return self.whole(**inputs)


class Learner:
    """The stack that learns under a DeepSpeed engine: step it, read it, set it back.

    Weights and optimizer state are told whole and by parameter name, on the CPU, whatever part of them this rank holds:
    the weights of all are on every rank; under ZeRO 1 and 2 their master copies and the optimizer's state lie in flat
    slices, one a rank and parameter group.
    """

    def __init__(self, tuner: StackModel, training: TrainingSection):
        self.parameters = learning_parameters(tuner)
        self.device = next(iter(self.parameters.values())).device
        self._optimizer: Optimizer = build_optimizer(self.parameters, training)
        self.rate = Rate(self._optimizer, training)
        self._sharded = training.zero_stage > 0
        self._norm = math.nan
        count = sum(parameter.numel() for parameter in self.parameters.values())
        self.engine, *_ = deepspeed.initialize(
            model=LearningModel(tuner, self.parameters),  # type: ignore[arg-type]  DeepSpeed's own annotations are wrong
            optimizer=self._optimizer,
            config=zero_config(training, world_size(), count),
            dist_init_required=False,
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Backward of one micro-batch and, with the global batch's last, the optimizer's step. ``loss`` is a share of
        the global batch's mean, so DeepSpeed must not divide by the accumulation again."""
        self.engine.backward(loss, scale_wrt_gas=False)
        if not self._sharded and self.engine.is_gradient_accumulation_boundary():  # without ZeRO, DeepSpeed tells none
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            self._norm = float(nn.utils.get_total_norm(gradients))
        self.engine.step()

    def gradient_norm(self) -> float:
        """Of the step just made, over all ranks, before clipping."""
        norm = self.engine.get_global_grad_norm() if self._sharded else self._norm
        return math.nan if norm is None else float(norm)

    def weights(self) -> Tensors:
        """A copy of what is learned."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The weights and ZeRO's master copies of them."""
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
        if self._sharded:
            zero: Any = self.engine.optimizer
            for master, parts in zip(
                zero.single_partition_of_fp32_groups, zero.parallel_partitioned_bit16_groups, strict=True
            ):
                master.copy_(parts[world_rank()])

    def forget(self) -> None:
        """The optimizer starts anew, moments and step."""
        forget(self._optimizer)

    def state(self, keep: bool = True) -> Tensors:
        """The optimizer's state, ``<parameter>.<key>``; empty before its first step. Every rank calls it, those that
        ``keep`` it get it."""
        state: Tensors = {}
        for stepped, sizes in self._slices():
            if stepped in self._optimizer.state:
                whole = gather_parts if self._sharded else torch.Tensor.detach
                state |= whole_state(self._optimizer, stepped, sizes, whole, keep)
        return state

    def set_state(self, state: Mapping[str, torch.Tensor]) -> None:
        load_state(self._optimizer, self._slices(), state, self._own_part)

    def close(self) -> None:
        """Lets go of the engine, whoever still holds the learner."""
        self.engine.destroy()
        self.parameters = {}
        del self.engine, self._optimizer, self.rate

    def _slices(self) -> list[tuple[torch.Tensor, Sizes]]:
        """What the optimizer steps, in its order, each with the parameters that lie in it."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        if not self._sharded:
            stepped = [p for group in self._optimizer.param_groups for p in group["params"]]
            return [(parameter, {names[id(parameter)]: parameter.shape}) for parameter in stepped]
        zero: Any = self.engine.optimizer
        groups = zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
        return [(flat, {names[id(p)]: p.shape for p in parameters}) for flat, parameters in groups]

    def _own_part(self, whole: torch.Tensor, stepped: torch.Tensor) -> torch.Tensor:
        if not self._sharded:
            return whole
        padded = torch.zeros(stepped.numel() * world_size(), dtype=whole.dtype)  # ZeRO rounds up to equal slices
        padded[: whole.numel()] = whole
        return padded[world_rank() * stepped.numel() :][: stepped.numel()]


@contextmanager
def learner(tuner: StackModel, training: TrainingSection) -> Iterator[Learner]:
    """A learner for one round. Afterwards nothing of its engine is left and the model is in eval mode."""
    model: Any = tuner.model
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    made = Learner(tuner, training)
    try:
        yield made
    finally:
        made.close()
        if training.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()
        release_memory()
