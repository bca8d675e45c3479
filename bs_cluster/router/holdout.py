"""Which rows the meta-router learns from and which it is judged on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bs_cluster.errors import DataError


def split_holdout(row_ids: Sequence[str], domains: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """(train, holdout) row indices, ascending; ``fraction`` of each domain's rows is held out, chosen by id hash.

    ``domains`` are the rows' own. The choice depends on the set of ids alone, never on their order. Every domain
    keeps at least one row on each side; raises DataError for a domain with fewer than two.
    """
    train: list[int] = []
    holdout: list[int] = []
    for domain in sorted(set(domains)):
        rows = [row for row, owner in enumerate(domains) if owner == domain]
        if len(rows) < 2:
            raise DataError(f"domain {domain!r} has {len(rows)} sweep row, a holdout needs 2; raise data.sweep_rows")
        rows.sort(key=lambda row: hashlib.sha256(row_ids[row].encode()).digest())
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        holdout += rows[:count]
        train += rows[count:]
    return sorted(train), sorted(holdout)
