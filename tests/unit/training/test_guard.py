"""The guard's verdicts and the commit rule."""

from __future__ import annotations

import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.training.guard import SpikeGuard, improves

LOSS = st.floats(0.01, 10) | st.sampled_from([math.nan, math.inf, -math.inf, 1e6])


def verdicts(losses, factor: float = 3.0, limit: int = 3) -> list[str]:
    guard = SpikeGuard(factor, limit)
    return [guard.judge(loss) for loss in losses]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_bad_from_the_first_step(bad: float):
    """Published flaw 7: NaN compares false with everything and so escapes a spike check."""
    assert verdicts([bad]) == ["restore"]
    assert verdicts([2.0] * 5 + [bad]) == ["go on"] * 5 + ["restore"]


def test_a_spike_is_judged_by_the_median_of_good_steps():
    assert verdicts([2.0, 2.0, 50.0]) == ["go on"] * 3  # too few to know what is usual
    assert verdicts([2.0] * 3 + [6.0, 6.1, 2.0, 6.1]) == ["go on"] * 4 + ["restore", "go on", "restore"]


def test_three_bad_steps_in_a_row_end_the_round_and_a_good_one_starts_the_count_anew():
    nan = math.nan
    assert verdicts([nan, nan, nan]) == ["restore", "restore", "stop"]
    assert verdicts([nan, nan, 2.0, nan, nan, 2.0, nan]) == ["restore"] * 2 + ["go on"] + ["restore"] * 2 + [
        "go on",
        "restore",
    ]
    assert verdicts([nan], limit=1) == ["stop"]


@given(st.lists(LOSS, max_size=60), st.floats(1.1, 10), st.integers(1, 5))
def test_every_verdict_follows_from_the_good_steps_before_it(losses, factor, limit):
    guard = SpikeGuard(factor, limit)
    good, in_a_row, restores = [], 0, 0
    for loss in losses:
        bad = not math.isfinite(loss) or (len(good) >= 3 and loss > factor * median(good[-20:]))
        in_a_row = in_a_row + 1 if bad else 0
        restores += bad
        if not bad:
            good.append(loss)
        assert guard.judge(loss) == (("stop" if in_a_row >= limit else "restore") if bad else "go on")
        assert guard.restores == restores


@given(st.lists(st.floats(1.0, 2.9), min_size=1, max_size=50))
def test_a_noisy_but_steady_run_is_never_touched(losses):
    assert set(verdicts(losses)) == {"go on"}


def test_a_stack_is_kept_only_if_it_beats_its_parent():
    """Published flaw 7: a round that made things worse is frozen all the same."""
    assert improves(2.0, 1.9, 0.002)
    assert improves(2.0, 2.0 - 2**-9, 2**-9)
    assert not improves(2.0, 1.999, 0.002)
    assert not improves(2.0, 2.0, 0.0)
    assert not improves(2.0, 2.1, 0.0)
    assert not improves(2.0, math.nan, 0.0)
    assert not improves(2.0, -math.inf, 0.0)
    assert not improves(math.nan, 1.0, 0.0)


@given(st.floats(0, 20), st.floats(0, 20) | st.just(math.nan), st.floats(0, 1))
def test_nothing_worse_than_its_parent_is_ever_committed(before, after, wanted):
    if improves(before, after, wanted):
        assert after < before
        assert before - after >= wanted
