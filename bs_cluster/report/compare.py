"""Sweep rows under their modes, by owner: losses, differences, and what an interval says of a statement."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bs_cluster.estimates import Estimate, estimate, paired_difference, token_mean
from bs_cluster.records import ModeLosses, RowLoss
from bs_cluster.report.record import ALL, FOREIGN, MIXED, Answer


class Compared:
    """``ModeLosses`` asked by mode and by owner or group (``ALL``, ``MIXED``, ``FOREIGN``)."""

    def __init__(self, losses: ModeLosses, domains: Sequence[str]):
        rows: dict[str, list[int]] = defaultdict(list)
        for row, owner in enumerate(losses.owners):
            rows[owner].append(row)
            rows[ALL if owner in domains else MIXED if owner.startswith("mixed:") else FOREIGN].append(row)
        self._of = {owner: losses.select(own) for owner, own in rows.items()}

    def rows(self, owner: str) -> int:
        return len(self._of[owner].row_ids) if owner in self._of else 0

    def loss(self, mode: str, owner: str) -> Estimate | None:
        """Nats per completion token of ``owner``'s rows under ``mode``; None where any of them lacks it."""
        found = self._found(mode, owner)
        return measured(estimate(np.array([r.nll for r in found]), np.array([r.tokens for r in found])))

    def mean(self, mode: str, owner: str) -> float | None:
        """The same without an interval, which a single row does not have."""
        mean = token_mean(self._found(mode, owner))
        return mean if math.isfinite(mean) else None

    def _found(self, mode: str, owner: str) -> list[RowLoss]:
        return (self._of[owner].losses(mode) if owner in self._of else None) or []

    def difference(self, mode: str, other: str, owner: str) -> Estimate | None:
        """``mode − other`` on ``owner``'s rows, paired: below zero, ``mode`` is better."""
        a, b = self._found(mode, owner), self._found(other, owner)
        return measured(paired_difference(a, b)) if a and b else None


def measured(value: Estimate) -> Estimate | None:
    """``value``, or None where it has no finite interval: no row, one row, or losses that are not finite."""
    return value if all(map(math.isfinite, (value.mean, value.error, value.low, value.high))) else None


def below_zero(difference: Estimate | None) -> Answer:
    """Is it better? Holds where the whole interval is below zero, fails where it is above, or where no row differs. An
    end at zero itself is that of a row or two, and decides nothing."""
    if difference is None:
        return "not measured"
    if difference.high < 0:
        return "holds"
    return "fails" if difference.low > 0 or difference.low == difference.high else "undecided"


def at_most(difference: Estimate | None, slack: float, reach: float) -> Answer:
    """Is it no worse? Holds where the mean is at most ``slack`` and the interval ends by ``reach``; fails where the
    whole interval is above ``slack``."""
    if difference is None:
        return "not measured"
    if difference.mean <= slack and difference.high <= reach:
        return "holds"
    return "fails" if difference.low > slack else "undecided"


def together(answers: Sequence[Answer]) -> Answer:
    """Of a statement about each of several: all must hold, one that fails is enough; without a measured one, none."""
    known = [answer for answer in answers if answer != "not measured"]
    if not known:
        return "not measured"
    if "fails" in known:
        return "fails"
    return "holds" if all(answer == "holds" for answer in answers) else "undecided"
