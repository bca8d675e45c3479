"""The metric, its error and its interval, against what they are meant to be."""

import math
import tracemalloc

import numpy as np
import pytest

from bs_cluster.estimates import estimate, paired_difference, share, token_mean
from bs_cluster.records import RowLoss


def losses(*pairs):
    return [RowLoss(nll, tokens) for nll, tokens in pairs]


def test_a_long_row_counts_by_its_tokens():
    assert token_mean(losses((10.0, 10), (30.0, 10), (8.0, 80))) == pytest.approx(48 / 100)


def test_a_paired_difference_is_below_zero_where_the_first_is_better():
    found = paired_difference(losses((1.0, 2), (2.0, 3)), losses((2.0, 2), (4.0, 3)))
    assert found.mean == pytest.approx(-3 / 5)
    assert found.high <= 0
    assert found.rows == 2


def test_what_differs_by_the_same_per_token_everywhere_has_no_error():
    found = paired_difference(losses((1.0, 2), (5.0, 10)), losses((2.0, 2), (10.0, 10)))
    assert (found.mean, found.error, found.low, found.high) == (-0.5, 0.0, -0.5, -0.5)


def test_errors_and_intervals_cover_the_truth_as_often_as_they_say():
    random, covered, errors, means = np.random.default_rng(0), 0, [], []
    for _ in range(200):
        tokens_B = random.integers(5, 40, 60)
        nats_B = tokens_B * 0.1 + random.normal(0, 1, 60) * np.sqrt(tokens_B)
        found = estimate(nats_B, tokens_B)
        covered += found.low <= 0.1 <= found.high
        errors.append(found.error)
        means.append(found.mean)
    assert 180 <= covered <= 200
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.2)


def test_the_same_rows_give_the_same_interval():
    random = np.random.default_rng(1)
    nats_B, tokens_B = random.normal(size=30), np.full(30, 7)
    assert estimate(nats_B, tokens_B) == estimate(nats_B, tokens_B)


def test_too_little_to_say_anything():
    assert math.isinf(estimate(np.array([1.0]), np.array([3])).error)
    assert math.isnan(estimate(np.array([]), np.array([])).mean)
    assert math.isnan(estimate(np.array([1.0, math.nan]), np.array([3, 3])).low)
    with pytest.raises(ValueError, match="not of the same rows"):
        paired_difference(losses((1.0, 2)), losses((1.0, 3)))


def test_a_share_has_wilson_s_interval_which_covers_as_often_as_it_says():
    assert share([]) is None
    none, some, every = share([False] * 10), share([True] * 3 + [False] * 7), share([True] * 10)
    assert (none.low, every.high) == (0.0, 1.0)
    assert (none.high, every.low) == (pytest.approx(0.2775, abs=1e-4), pytest.approx(0.7225, abs=1e-4))
    assert (some.count, some.rows, some.mean) == (3, 10, 0.3)
    assert (some.low, some.high) == (pytest.approx(0.1078, abs=1e-4), pytest.approx(0.6032, abs=1e-4))
    random = np.random.default_rng(0)
    found = [share((random.random(20) < 0.1).tolist()) for _ in range(1000)]
    assert 0.93 <= np.mean([of.low <= 0.1 <= of.high for of in found]) <= 0.99


def test_the_interval_of_very_many_rows_is_as_wide_as_their_error_says():
    """Over blocks of rows: it costs no more than that of a thousand rows, in memory either."""
    random = np.random.default_rng(0)
    tokens_B = random.integers(5, 40, 200_000)
    nats_B = tokens_B * 0.1 + random.normal(0, 1, 200_000) * np.sqrt(tokens_B)
    tracemalloc.start()
    found = estimate(nats_B, tokens_B)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.rows == 200_000
    assert (found.high - found.low) / (2 * 1.96 * found.error) == pytest.approx(1, abs=0.1)
    assert (found.high + found.low) / 2 == pytest.approx(found.mean, abs=0.5 * found.error)
    assert peak < 150e6
