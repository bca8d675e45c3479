"""What an export loses: fixed gates measured on training rows, losses on rows that no stack was trained on.

Shapes: B rows, D domains, P sites, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.decoder import decoder_and_head
from bs_cluster.estimates import Estimate, estimate, paired_difference
from bs_cluster.export.record import DomainLosses
from bs_cluster.export.source import Source
from bs_cluster.inference.scoring import score_routed
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import RowLoss

GATE_ROWS = 64  # of each domain: what the fixed gates are the mean over


def gate_rows(source: Source, domain: str) -> list[EncodedRow]:
    """Training rows of a domain, evenly spaced, at most ``GATE_ROWS``."""
    train = source.rows(domain).train
    taken = min(GATE_ROWS, len(train))
    return [train[i * len(train) // taken] for i in range(taken)]


def held_out(source: Source, domain: str) -> list[EncodedRow]:
    """Rows that ``domain`` was not trained on: those of its sweep, and those of its validation, which chose among the
    snapshots of a stack but none of what an export does."""
    rows = source.rows(domain)
    return [*rows.sweep, *rows.validation]


@torch.no_grad()
def mean_gates(
    stacked: StackedBase, source: Source, rows: Mapping[str, Sequence[EncodedRow]]
) -> dict[str, torch.Tensor]:
    """Mean gates (P, E) of each wanted stack over all tokens of its own domain's ``rows``, all wanted gates being on. A
    row at a time: padding must not count."""
    gates, found = source.wanted.gates, {}
    stacked.fire(stacked.names)
    stacked.base.model.eval()
    decoder, _, _ = decoder_and_head(stacked.base.model)
    device = stacked.base.model.device
    weights_1D = torch.tensor([list(gates.values())], device=device)
    for domain, own in rows.items():
        with stacked.tuner.gates(weights_1D, tuple(gates)), stacked.tuner.measuring_gates(stacked.of(domain)) as mean:
            for row in own:
                decoder(input_ids=torch.tensor([row.input_ids], device=device), use_cache=False)
        found |= {name: mean.mean_PE(name) for name in mean.names}
    return found


def row_losses(
    stacked: StackedBase, rows: Sequence[EncodedRow], gates: dict[str, float], batch_tokens: int
) -> list[RowLoss]:
    """Losses under these domain gates; where ``stacked`` holds no stacks of ours, under what its model is."""
    found: dict[int, RowLoss] = {}
    for batch in plan_batches([len(row.input_ids) for row in rows], batch_tokens):
        weights = [list(gates.values())] * len(batch)
        losses = score_routed(stacked, [rows[place] for place in batch], weights, tuple(gates))
        found |= zip(batch, losses, strict=True)
    return [found[place] for place in range(len(rows))]


def compared(
    domain: str, base: Sequence[RowLoss], stacks: Sequence[RowLoss], exported: Sequence[RowLoss]
) -> DomainLosses:
    return DomainLosses(
        domain=domain,
        tokens=sum(loss.tokens for loss in base),
        base=_mean(base),
        stacks=_mean(stacks),
        exported=_mean(exported),
        gap=paired_difference(exported, stacks),
        gain=paired_difference(exported, base),
    )


def _mean(losses: Sequence[RowLoss]) -> Estimate:
    return estimate(np.array([loss.nll for loss in losses]), np.array([loss.tokens for loss in losses]))
