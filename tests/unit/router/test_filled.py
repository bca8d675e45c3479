"""What an adaptive sweep left out is predicted without bias, and never as better than what it found."""

import numpy as np
import pytest
from worlds import DOMAINS

from bs_cluster.config.schema import SweepSection
from bs_cluster.records import RowLoss
from bs_cluster.router.filled import filled_nll
from bs_cluster.sweep.combinations import all_masks
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.search import next_requests

FIVE = (*DOMAINS, "medical", "reasoning")
TOKENS = 10


def saturating(rows: int, seed: int) -> np.ndarray:
    """Losses (rows, 32) of domains that do not add up: a combination is as its best domain, and each other one costs,
    less the more of them there are. So was it measured on real stacks."""
    draw = np.random.default_rng(seed)
    alone = 2.5 + draw.normal(scale=0.8, size=(rows, 5))
    base = alone.mean(axis=1) + 0.3
    losses = np.empty((rows, 32))
    for mask in all_masks(5):
        fires = [d for d in range(5) if mask >> d & 1]
        best, mean = (alone[:, fires].min(axis=1), alone[:, fires].mean(axis=1)) if fires else (base, base)
        losses[:, mask] = 0.6 * best + 0.4 * mean + 0.25 * len(fires) ** 0.5
    return np.maximum(losses + draw.normal(scale=0.03, size=losses.shape), 0.05)


def swept(losses_BC: np.ndarray) -> OutcomeTable:
    """The table that an adaptive search makes of these."""
    rows = len(losses_BC)
    table = OutcomeTable([f"q{row}" for row in range(rows)], [FIVE[row % 5] for row in range(rows)], FIVE)
    while len(asked := next_requests(table, SweepSection(search="adaptive"))):
        for row, mask in asked:
            table.record(row, mask, RowLoss(TOKENS * float(losses_BC[row, mask]), TOKENS))
    return table


@pytest.mark.parametrize("seed", range(3))
def test_predictions_are_close_and_lean_to_no_side(seed):
    losses_BC = saturating(80, seed)
    table = swept(losses_BC)
    masks = table.masks()
    missing_BC = np.isnan(table.nll_BC(masks))
    assert missing_BC.mean() > 0.2
    error_BC = filled_nll(table, masks) / TOKENS - losses_BC[:, masks]
    assert abs(error_BC[missing_BC].mean()) < 0.05
    assert np.abs(error_BC[missing_BC]).mean() < 0.15
    np.testing.assert_allclose(error_BC[~missing_BC], 0, atol=1e-6)


def test_none_is_better_than_the_best_that_the_row_has_measured():
    losses_BC = saturating(40, 9)
    table = swept(losses_BC)
    masks = table.masks()
    measured_BC = table.nll_BC(masks)
    filled_BC = filled_nll(table, masks)
    assert (filled_BC >= np.nanmin(measured_BC, axis=1, keepdims=True) - 1e-9).all()
