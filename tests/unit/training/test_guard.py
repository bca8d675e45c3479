"""The guard suspects by what is usual and judges by the parent; NaN needs no judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.config.schema import TrainingSection
from bs_cluster.training.guard import SpikeGuard

LOSS = st.floats(0.01, 10) | st.sampled_from([math.nan, math.inf, -math.inf, 1e6])


def guard(**settings) -> SpikeGuard:
    training = TrainingSection(**settings)
    return SpikeGuard(training.spike_deviations, training.spike_margin, training.spike_norm_factor, training.max_spikes)


def verdicts(losses, parents=None, norms=None, **settings) -> list[str]:
    """Of a run in which the parent's loss on each batch is known; it is asked only where the guard suspects."""
    watch, found = guard(**settings), []
    for i, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[i]
        parent = None if parents is None else parents[i]
        found.append(watch.judge(loss, norm, parent if watch.suspects(loss, norm) else None))
    return found


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_bad_from_the_first_step(bad: float):
    """Published flaw 7: NaN compares false with everything and so escapes a spike check."""
    assert verdicts([bad]) == ["restore"]
    assert verdicts([2.0] * 5 + [bad]) == ["go on"] * 5 + ["restore"]


def test_a_gradient_that_is_not_finite_is_bad_though_its_loss_looks_well():
    assert verdicts([2.0, 2.0], norms=[1.0, math.nan]) == ["go on", "restore"]


def test_a_hard_batch_among_easy_ones_is_no_spike():
    """Rows that usually lose .06 with some of another kind at 1.04 to 1.22, below what the base itself loses on them:
    the ordinary life of a mixed domain, in which a factor on the median restored twice in thirty steps."""
    random = np.random.default_rng(0)
    losses = [float(random.uniform(0.03, 0.09)) for _ in range(30)]
    parents = [0.3] * 30
    for step, loss in ((6, 1.04), (17, 1.22), (18, 1.1)):
        losses[step], parents[step] = loss, 1.5
    watch = guard()
    assert set(verdicts(losses, parents)) == {"go on"}
    assert sum(watch.suspects(loss, 1.0) for loss in losses) == 0  # nothing is known yet: nobody is asked


def test_only_what_is_far_from_usual_is_asked_about():
    watch = guard()
    asked = []
    for loss in [2.0, 2.1, 1.9, 2.05, 2.3, 2.0, 9.0]:
        asked.append(watch.suspects(loss, 1.0))
        watch.judge(loss, 1.0, 2.0 if asked[-1] else None)
    assert asked == [False] * 6 + [True]


def test_a_blow_up_is_a_spike():
    """A rate a thousand times too high: losses the parent never had on any batch."""
    assert verdicts([2.0] * 5 + [11.0, 14.0, 17.0, 20.0], [2.0] * 9) == [
        *["go on"] * 5,
        "restore",
        "restore",
        "restore",
        "stop",
    ]


def test_a_wild_gradient_alone_is_asked_about_and_forgiven():
    losses, norms = [2.0] * 6, [1.0] * 5 + [50.0]
    assert verdicts(losses, [2.0] * 6, norms) == ["go on"] * 6
    assert verdicts([*losses[:5], 2.9], [2.0] * 6, norms)[-1] == "restore"


def test_four_bad_steps_in_a_row_end_the_round_and_a_good_one_starts_the_count_anew():
    """The paper's number."""
    nan, bad = math.nan, "restore"
    assert verdicts([nan, nan, nan, nan]) == [bad, bad, bad, "stop"]
    assert verdicts([nan, nan, nan, 2.0, nan, nan, 2.0]) == [bad, bad, bad, "go on", bad, bad, "go on"]
    assert verdicts([nan], max_spikes=1) == ["stop"]


@given(st.lists(LOSS, max_size=60), st.integers(1, 5))
def test_a_finite_step_no_worse_than_its_parent_is_never_undone(losses, limit):
    watch = guard(max_spikes=limit)
    for loss in losses:
        verdict = watch.judge(loss, 1.0, loss if watch.suspects(loss, 1.0) else None)
        assert (verdict == "go on") == math.isfinite(loss)


@given(st.lists(LOSS, max_size=40), st.lists(LOSS, max_size=40))
def test_a_guard_that_was_saved_goes_on_as_if_it_had_not_been(before, after):
    whole, first, second = guard(), guard(), guard()
    for loss in before:
        assert whole.judge(loss, 1.0) == first.judge(loss, 1.0)
    second.load(first.state())
    for loss in after:
        assert whole.suspects(loss, 1.0) == second.suspects(loss, 1.0)
        assert whole.judge(loss, 1.0, 1.0) == second.judge(loss, 1.0, 1.0)
