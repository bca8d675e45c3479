"""Which rows judge a meta-router that never saw them: every row once, in turns."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bs_cluster.errors import DataError
from bs_cluster.sweep.owners import kind_of


def deal_folds(
    row_ids: Sequence[str], owners: Sequence[str], domains: Sequence[str], count: int, seed: int = 0
) -> np.ndarray:
    """A fold, from 0 to ``count`` - 1, for each row (B,) int64.

    The rows of a domain or a mixed kind are dealt in turns, in an order that hashes of their ids and ``seed`` decide.
    A foreign kind goes into one fold as a whole: staying out is judged on kinds that were never met. The choice hangs
    on the set of rows, not on their order. Raises DataError for a domain with fewer than two rows.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, owner in enumerate(owners):
        rows_of[owner].append(row)

    def draw(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    fold_B = np.empty(len(owners), dtype=np.int64)
    kinds: list[str] = []
    start = 0
    for owner in sorted(rows_of):
        rows = sorted(rows_of[owner], key=lambda row: draw(row_ids[row]))
        if kind_of(owner, domains) == "foreign":
            kinds.append(owner)
            continue
        if owner in domains and len(rows) < 2:
            raise DataError(f"domain {owner!r} has {len(rows)} sweep row, judging takes 2; raise data.sweep_rows")
        fold_B[rows] = (start + np.arange(len(rows))) % count
        start += len(rows)
    for place, owner in enumerate(sorted(kinds, key=draw)):
        fold_B[rows_of[owner]] = place % count
    return fold_B
