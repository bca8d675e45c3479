"""Regret: zero for the oracle, exact for fixed policies, on tables small enough to work out by hand."""

import json

import numpy as np
import pytest

from bs_cluster.errors import DataError
from bs_cluster.records import RowLoss
from bs_cluster.router.regret import regret_report
from bs_cluster.sweep.combinations import all_masks, mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.summary import summarise

DOMAINS = ("chat", "math")
# Losses by mask: base, chat, math, both.
LOSSES = {
    "c1": ("chat", [2.0, 1.0, 1.8, 1.1]),
    "c2": ("chat", [2.0, 1.2, 1.8, 1.1]),
    "m1": ("math", [3.0, 2.9, 2.0, 2.2]),
    "m2": ("math", [3.0, 2.0, 2.1, 2.4]),
}
TRAIN, HOLDOUT = [0, 2], [1, 3]


@pytest.fixture
def table() -> OutcomeTable:
    outcomes = OutcomeTable(list(LOSSES), [domain for domain, _ in LOSSES.values()], DOMAINS)
    for row, (_, losses) in enumerate(LOSSES.values()):
        for mask in all_masks(2):
            outcomes.record(row, mask, RowLoss(losses[mask] * 5, 5))
    return outcomes


def test_the_oracle_has_no_regret(table):
    oracle = summarise(table.subset(HOLDOUT))
    weights_BD = np.array([mask_weights(int(mask), 2) for mask in oracle.best_mask_B])
    report = regret_report(table, TRAIN, HOLDOUT, oracle.oracle_B, weights_BD)
    assert report["regret"] == 0
    assert report["accuracy"] == report["exact_set"] == 1


def test_fixed_policies_by_hand(table):
    # Oracle: c2 both (1.1), m2 chat alone (2.0).
    report = regret_report(table, TRAIN, HOLDOUT, np.array([1.15, 2.1]), np.array([[0.9, 0.2], [0.3, 0.8]]))
    assert report["regret"] == pytest.approx((0.05 + 0.1) / 2)
    assert report["label_regret"] == pytest.approx((0.1 + 0.1) / 2)
    assert report["all_on_regret"] == pytest.approx((0.0 + 0.4) / 2)
    assert report["base_regret"] == pytest.approx((0.9 + 1.0) / 2)
    # Over the training rows chat alone costs 1.95, math alone 1.9; on the held-out rows 1.6 and 1.95.
    assert (report["best_single"], report["best_single_hindsight"]) == ("math", "chat")
    assert report["best_single_regret"] == pytest.approx((0.7 + 0.1) / 2)
    assert report["best_single_hindsight_regret"] == pytest.approx((0.1 + 0.0) / 2)
    assert report["label_top1"] == 1
    assert report["accuracy"] == report["exact_set"] == 0
    assert report["by_domain"]["math"]["routed"] == pytest.approx(2.1)
    assert report["by_domain"]["chat"]["all_on_regret"] == pytest.approx(0.0)
    json.dumps(report, allow_nan=False)


def test_a_floor_is_no_choice_and_a_near_tie_is_no_mistake(table):
    weights_BD = np.array([[0.9, 0.9], [0.9, 0.2]])
    report = regret_report(table, TRAIN, HOLDOUT, np.array([1.1, 2.0]), weights_BD)
    assert report["exact_set"] == 1
    near = regret_report(table, TRAIN, HOLDOUT, np.array([1.2, 2.0]), np.array([[0.9, 0.2], [0.9, 0.2]]), tolerance=0.1)
    assert (near["accuracy"], near["exact_set"]) == (1, 0.5)


def test_misaligned_or_broken_losses_are_refused(table):
    with pytest.raises(DataError, match="2 held-out rows, 1 routed"):
        regret_report(table, TRAIN, HOLDOUT, np.array([1.0]), np.ones((2, 2)))
    with pytest.raises(DataError, match="not finite"):
        regret_report(table, TRAIN, HOLDOUT, np.array([1.0, np.nan]), np.ones((2, 2)))
