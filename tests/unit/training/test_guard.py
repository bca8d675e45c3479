"""The guard suspects by what is usual and judges by the parent; NaN needs no judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
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


def watched(losses, parents) -> tuple[list[bool], list[str]]:
    """At each step whether the guard suspected it, and its verdict by the parent's loss where it did."""
    watch, asked, found = guard(), [], []
    for loss, parent in zip(losses, parents, strict=True):
        asked.append(watch.suspects(loss, 1.0))
        found.append(watch.judge(loss, 1.0, parent if asked[-1] else None))
    return asked, found


def guard_asks(losses) -> list[bool]:
    return watched(losses, losses)[0]


def descent(wild_from: int, steps: int = 20) -> list[float]:
    """Losses of AdamW on a quadratic, at a good rate and from one step on at a thousand times it."""
    weight = torch.zeros(64, requires_grad=True)
    optimum = torch.linspace(-0.1, 0.1, 64)
    optimizer = torch.optim.AdamW([weight], lr=3e-3)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1000 if step >= wild_from else 1)
        loss = 2.0 + ((weight - optimum) ** 2).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


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
    asked, found = watched(losses, parents)
    assert set(found) == {"go on"}
    assert [step for step, suspect in enumerate(asked) if suspect] == [6, 17, 18]  # acquitted by the parent's loss
    assert watched(losses, [0.3] * 30)[1][17] == "restore"  # the same loss where the parent lost less


def test_two_kinds_of_rows_in_turns_are_not_even_suspected():
    """Where both kinds come all the time the spread is wide, and a batch of either is usual: no forward is spent."""
    random = np.random.default_rng(1)
    losses = [float(random.uniform(*((0.03, 0.09) if step % 2 else (1.0, 1.3)))) for step in range(40)]
    asked, found = watched(losses, [math.nan] * 40)
    assert not any(asked[4:])
    assert set(found[4:]) == {"go on"}


def test_a_rate_a_thousand_times_too_high_is_suspected_at_once():
    """A good rate is never asked about; after a step at a thousand times it the next loss is, and is judged bad."""
    assert not any(guard_asks(descent(wild_from=20)))
    wild = descent(wild_from=10)
    asked, found = watched(wild, [wild[0]] * len(wild))
    assert asked[:12] == [False] * 11 + [True]
    assert found[:12] == ["go on"] * 11 + ["restore"]


def test_before_anything_is_usual_nobody_is_suspected():
    watch = guard()
    for loss in (2.0, 9.0, 0.1):
        assert not watch.suspects(loss, 1.0)
        watch.judge(loss, 1.0)
    assert watch.suspects(20.0, 1.0)
    assert not watch.suspects(math.nan, 1.0)  # bad without being asked about


def test_only_what_is_far_from_usual_is_asked_about():
    watch = guard()
    asked = []
    for loss in [2.0, 2.1, 1.9, 2.05, 2.3, 2.0, 9.0]:
        asked.append(watch.suspects(loss, 1.0))
        watch.judge(loss, 1.0, 2.0 if asked[-1] else None)
    assert asked == [False] * 6 + [True]


def test_a_blow_up_is_a_spike():
    """A rate a thousand times too high: losses the parent never had on any batch. Each is asked about, and bad."""
    asked, found = watched([2.0] * 5 + [11.0, 14.0, 17.0, 20.0], [2.0] * 9)
    assert asked == [False] * 5 + [True] * 4
    assert found == ["go on"] * 5 + ["restore"] * 3 + ["stop"]


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
