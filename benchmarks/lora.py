"""PEFT's LoRA as our stacks are compared with it: the same sites, B at zero, the loss of completions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.batch import collate_packed
from bs_cluster.data.encode import EncodedRow
from bs_cluster.stacks.lm_loss import completion_nll
from bs_cluster.stacks.model import SEVEN_PROJECTIONS
from bs_cluster.training.optimizer import Rate, build_optimizer


def lora_config(rank: int, scale: float, targets: Sequence[str] = SEVEN_PROJECTIONS) -> LoraConfig:
    """A LoRA whose delta is ``scale · B A``, whatever its rank. rsLoRA's alpha/sqrt(rank) is a scale like any other."""
    return LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=list(targets))  # type: ignore[arg-type]


def packed_nll(model: nn.Module, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Loss (N,) of every completion token of these rows, end to end in one sequence, attention within rows."""
    batch = collate_packed(rows)
    return completion_nll(model, batch["labels"], input_ids=batch["input_ids"], position_ids=batch["position_ids"])


def learn(
    model: PreTrainedModel,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Sequence[EncodedRow]],
    training: TrainingSection,
) -> None:
    """A step for each batch, as a round of ours takes it: its optimizer, its rate by step, its clipping, products in
    the base's dtype and weights in fp32; the loss is the mean over the batch's completion tokens. ``training.steps``
    says how long the rate's curve is."""
    optimizer = build_optimizer(parameters, training)
    rate = Rate(optimizer, training)
    dtype, device = model.dtype, model.device
    for step, rows in enumerate(batches, start=1):
        rate.set(step, None)
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = packed_nll(model, rows).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
