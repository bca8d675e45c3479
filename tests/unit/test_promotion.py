"""A bundle becomes champion only if nobody is served worse by more than chance."""

import numpy as np
import pytest

from bs_cluster.promotion import decide, served_change
from bs_cluster.records import RowLoss

SLACK = 0.01


def losses(mean: float, rows: int = 24, seed: int = 0, noise: float = 0.0) -> list[RowLoss]:
    random = np.random.default_rng(seed)
    return [RowLoss(10 * (mean + noise * float(random.normal())), 10) for _ in range(rows)]


def change(former, now, owners=None):
    return served_change(former, now, owners or ["chat"] * len(now), against=3, slack=SLACK)


def test_the_first_bundle_is_champion_unless_a_person_decides():
    assert decide("guarded", None, SLACK).promote
    assert not decide("manual", None, SLACK).promote


def test_the_same_losses_are_no_regression():
    found = change(losses(2.0), losses(2.0))
    assert found.worse == ()
    assert decide("guarded", found, SLACK).promote


def test_one_domain_served_worse_holds_the_alias_though_the_mean_got_better():
    former = losses(2.0) + losses(2.5, seed=1)
    now = losses(0.5) + losses(2.8, seed=1)
    found = change(former, now, ["chat"] * 24 + ["medical"] * 24)
    assert found.overall.high < 0
    assert found.worse == ("medical",)
    decision = decide("guarded", found, SLACK)
    assert not decision.promote
    assert "medical" in decision.reason
    assert "bundle 3" in decision.reason
    assert decide("always", found, SLACK).promote


def test_a_difference_within_chance_is_none():
    found = change(losses(2.0, seed=1, noise=0.5), losses(2.02, seed=2, noise=0.5))
    assert found.kinds["chat"].low < 0 < found.kinds["chat"].high
    assert found.worse == ()


@pytest.mark.parametrize(("harm", "worse"), [(0.005, ()), (0.02, ("chat",))])
def test_a_certain_harm_below_the_setting_is_let_pass(harm, worse):
    assert change(losses(2.0), losses(2.0 + harm)).worse == worse
