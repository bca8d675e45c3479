"""The one evaluator: a row's completion loss under whatever fires. Training, the sweep and the report all call it.

A row's loss depends on the rows it shares a padded batch with only by rounding; where bits must agree (a domain's
isolated loss at commit and at the campaign's end) the same rows are batched the same way: ``plan_batches``.

Shapes: B rows, T tokens, D domains, N label positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bs_cluster.data.batch import collate
from bs_cluster.data.encode import EncodedRow
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import RowLoss
from bs_cluster.stacks.lm_loss import completion_nll


@torch.no_grad()
def score_batch(stacked: StackedBase, rows: Sequence[EncodedRow]) -> list[RowLoss]:
    """Losses of these rows as one batch under what fires now; summed over each completion in float64."""
    model = stacked.base.model
    if model.training:
        model.eval()
    batch = {k: v.to(model.device) for k, v in collate(rows, stacked.base.tokenizer.pad_token_id).items()}  # type: ignore[arg-type]
    nll_N = completion_nll(model, batch["labels"], input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    counts = [row.completion_length for row in rows]
    return [
        RowLoss(float(part.sum()), count)
        for part, count in zip(nll_N.double().cpu().split(counts), counts, strict=True)
    ]


def score_routed(
    stacked: StackedBase, rows: Sequence[EncodedRow], weights: Sequence[Sequence[float]], domains: Sequence[str]
) -> list[RowLoss]:
    """Losses with each row under its own gate weights (one per domain of ``domains``)."""
    weights_BD = torch.tensor(weights, dtype=torch.float32, device=stacked.base.model.device)
    if stacked.peft is None:
        return score_batch(stacked, rows)
    with stacked.tuner.gates(weights_BD, domains):
        return score_batch(stacked, rows)
