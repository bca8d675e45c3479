"""Which rows teach a meta-router, and which judge one that never saw them: every row once, in turns."""

from __future__ import annotations

import bisect
import hashlib
from collections import Counter
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
    on the set of rows, not on their order. Raises DataError for a domain with fewer than two rows, and for a row that
    occurs twice: it would judge what it taught.
    """
    if len(set(row_ids)) < len(row_ids):
        repeated = next(row_id for row_id, times in Counter(row_ids).items() if times > 1)
        raise DataError(f"row {repeated!r} occurs twice among the sweep rows; row ids must be unique")
    fold_B = np.empty(len(owners), dtype=np.int64)
    rows_of = _shuffled(row_ids, owners, seed)
    kinds: list[str] = []
    start = 0
    for owner, rows in rows_of.items():
        if kind_of(owner, domains) == "foreign":
            kinds.append(owner)
            continue
        if owner in domains and len(rows) < 2:
            raise DataError(f"domain {owner!r} has {len(rows)} sweep row, judging takes 2; raise data.sweep_rows")
        fold_B[rows] = (start + np.arange(len(rows))) % count
        start += len(rows)
    for place, owner in enumerate(sorted(kinds, key=lambda owner: _draw(seed, owner))):
        fold_B[rows_of[owner]] = place % count
    return fold_B


def sample_rows(row_ids: Sequence[str], owners: Sequence[str], most: int, seed: int = 0) -> np.ndarray:
    """The rows that teach, ascending: all, or where there are more than ``most``, as many of each owner as fit, and all
    of an owner that has no more. They are the first that ``deal_folds`` deals, so that each fold has its share."""
    if len(row_ids) <= most:
        return np.arange(len(row_ids))
    rows_of = _shuffled(row_ids, owners, seed)
    sizes = np.array([len(rows) for rows in rows_of.values()])
    each = bisect.bisect_right(range(most + 1), most, key=lambda each: int(np.minimum(sizes, each).sum())) - 1
    return np.sort(np.concatenate([rows[: max(each, 2)] for rows in rows_of.values()]))


def _shuffled(row_ids: Sequence[str], owners: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """The rows of each owner in the order that hashes decide; owners sorted."""
    names = sorted(set(owners))
    number = {name: place for place, name in enumerate(names)}
    number_B = np.fromiter((number[owner] for owner in owners), np.int64, len(owners))
    digests = np.frombuffer(b"".join(_draw(seed, row_id) for row_id in row_ids), dtype=">u8").reshape(-1, 4)
    order = np.lexsort((*digests.T[::-1], number_B))
    ends = np.cumsum(np.bincount(number_B, minlength=len(names)))
    return dict(zip(names, np.split(order, ends[:-1]), strict=True)) if names else {}


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
