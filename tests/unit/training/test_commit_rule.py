"""Nothing is frozen that does not surely beat its parent, on rows that had no part in choosing it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.estimates import Estimate, estimate
from bs_cluster.training.commit_rule import committed_because, decide, decide_aligned, split_validation


def gain(mean: float, error: float, rows: int = 32) -> Estimate:
    return Estimate(mean, error, mean - 2 * error, mean + 2 * error, rows)


@given(st.lists(st.integers(), min_size=4, max_size=200, unique=True), st.floats(0.01, 0.99))
def test_rows_that_select_and_rows_that_decide_are_never_the_same(rows, share):
    selection, decision = split_validation(rows, share)
    assert [*selection, *decision] == rows
    assert len(selection) >= 2
    assert len(decision) >= 2  # one row has no standard error


def test_a_gain_counts_after_its_error():
    """Chat's second round: better by .007 on sixteen rows, worse by .012 on ninety-six fresh ones."""
    assert decide(gain(0.1, 0.02), 0.002, 1.0).commit
    assert not decide(gain(0.007, 0.03), 0.002, 1.0).commit
    assert decide(gain(0.007, 0.03), 0.002, 0.0).commit  # the paper's rule, if asked for


@pytest.mark.parametrize("mean", [0.0, -0.1, math.nan, -math.inf, math.inf])
def test_what_is_not_better_is_never_kept(mean):
    """Published flaw 7: a round that made things worse is frozen all the same."""
    assert not decide(gain(mean, 0.0), 0.0, 0.0).commit
    assert not decide(gain(mean, 0.0), 0.0, 1.0).commit


def test_a_first_round_beside_others_must_beat_the_base_too():
    """Other domains' stacks may have made this one worse; beating that is no merit."""
    found = decide(gain(0.5, 0.01), 0.002, 1.0, over_base=gain(-0.1, 0.01))
    assert not found.commit
    assert "the base" in found.reason


def test_one_row_decides_nothing():
    assert not decide(estimate(np.array([5.0]), np.array([10])), 0.002, 1.0).commit


@given(st.floats(-5, 5), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 3))
def test_whatever_is_kept_beat_its_parent_by_what_was_wanted(mean, error, wanted, errors):
    if decide(gain(mean, error), wanted, errors).commit:
        assert mean > wanted
        assert mean - errors * error > wanted


@pytest.mark.parametrize(
    ("mean", "error", "rises", "commit"),
    [
        (0.2, 0.05, {"aa": 0.01, "bb": -0.2}, True),
        (0.04, 0.05, {"aa": 0.0}, False),  # not beyond its error
        (0.2, 0.05, {"aa": 0.0, "bb": 0.06}, False),  # paid for by another domain
        (0.2, 0.05, {"aa": math.nan}, False),
        (math.nan, 0.05, {"aa": 0.0}, False),
        (0.0, 0.0, {"aa": 0.0}, False),
    ],
)
def test_alignment_is_kept_for_what_it_gains_and_only_if_nothing_pays_for_it(mean, error, rises, commit):
    decision = decide_aligned(gain(mean, error), 1.0, rises, 0.05)
    assert decision.commit is commit


def test_why_an_alignment_was_committed_is_a_function_of_its_manifest():
    decision = decide_aligned(gain(0.2, 0.05), 1.0, {"aa": 0.01, "bb": -0.2}, 0.05)
    metrics = {"gain": 0.2, "gain_error": 0.05, "rows": 32.0, "loss_rise/aa": 0.01, "loss_rise/bb": -0.2, "steps": 3.0}
    assert committed_because("grpo", metrics) == decision.reason
    assert decision.reason.startswith("gain 0.200 ± 0.050 of 32 prompts")
