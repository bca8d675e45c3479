"""The one metric and its uncertainty: nats per completion token over a set of rows, compared row by row.

A loss of rows is ``Σ nll / Σ tokens``, the mean over tokens. A difference of two ways of answering the *same* rows is
paired: ``Σ (nll_a − nll_b) / Σ tokens``. Rows are what varies, so its standard error is a ratio estimator's over rows
(Cochran, Sampling Techniques, 6.4) and its interval a bootstrap over rows (percentiles, fixed seed), or where there are
very many, over so many blocks of rows, dealt at random.

Shapes: B rows, N bootstrap samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bs_cluster.records import Record, RowLoss

RESAMPLES = 4000
BLOCKS = 1024
LEVEL = 0.95
NORMAL_95 = 1.96  # standard deviations of a normal distribution that hold as much
SEED = 20260401


@dataclass(frozen=True)
class Estimate(Record):
    """A mean in nats per completion token: its standard error, the ends of its 95 % interval, how many rows."""

    mean: float
    error: float
    low: float
    high: float
    rows: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] on {self.rows} rows".replace("-", "−")


@dataclass(frozen=True)
class Share(Record):
    """So many of the rows, with the ends of the 95 % interval of their share (Wilson: within 0 and 1, also of few)."""

    count: int
    rows: int
    low: float
    high: float

    @property
    def mean(self) -> float:
        return self.count / self.rows


def share(hits: Sequence[bool]) -> Share | None:
    """The share of rows that hit; None without a row."""
    rows, count = len(hits), sum(hits)
    if not rows:
        return None
    middle, squared = count / rows, NORMAL_95**2 / rows
    centre = (middle + squared / 2) / (1 + squared)
    reach = NORMAL_95 * math.sqrt(middle * (1 - middle) / rows + squared / rows / 4) / (1 + squared)
    return Share(count, rows, max(0.0, centre - reach), min(1.0, centre + reach))


def token_mean(losses: Sequence[RowLoss]) -> float:
    """Nats per completion token, over all tokens of these rows. NaN without a token."""
    tokens = sum(loss.tokens for loss in losses)
    return sum(loss.nll for loss in losses) / tokens if tokens else math.nan


def paired_difference(a: Sequence[RowLoss], b: Sequence[RowLoss]) -> Estimate:
    """``a − b`` on the same rows in the same order: below zero, ``a`` is better. Raises ValueError for other rows."""
    if len(a) != len(b) or any(x.tokens != y.tokens for x, y in zip(a, b, strict=True)):
        raise ValueError(f"{len(a)} and {len(b)} losses that are not of the same rows cannot be paired")
    return estimate(np.array([x.nll - y.nll for x, y in zip(a, b, strict=True)]), np.array([x.tokens for x in a]))


def estimate(nats_B: np.ndarray, tokens_B: np.ndarray) -> Estimate:
    """``Σ nats / Σ tokens`` over rows with standard error and bootstrap interval.

    One row alone has an infinite error; numbers that are not finite give NaN throughout.
    """
    rows, tokens = len(nats_B), float(tokens_B.sum()) if len(tokens_B) else 0.0
    if not rows or not tokens or not np.isfinite(nats_B).all():
        return Estimate(math.nan, math.nan, math.nan, math.nan, rows)
    mean = float(nats_B.sum()) / tokens
    if rows == 1:
        return Estimate(mean, math.inf, -math.inf, math.inf, 1)
    residual_B = nats_B - mean * tokens_B
    error = math.sqrt(float((residual_B**2).sum()) * rows / (rows - 1)) / tokens
    if not residual_B.any():
        return Estimate(mean, 0.0, mean, mean, rows)
    if rows > BLOCKS:
        block_B = np.random.default_rng(SEED).permutation(rows) % BLOCKS
        nats_B, tokens_B = np.bincount(block_B, nats_B), np.bincount(block_B, tokens_B)
    counts_NB = _resamples(len(nats_B))
    means_N = counts_NB @ nats_B / (counts_NB @ tokens_B)
    low, high = np.quantile(means_N, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, error, float(low), float(high), rows)


@functools.lru_cache(maxsize=1)  # estimates of the same rows come one after another
def _resamples(rows: int) -> np.ndarray:
    """How often each resample has each row, (N, B): an interval takes two thin products with it."""
    return np.random.default_rng(SEED).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
