"""All rows of a sweep judged, a shard of them in memory at a time.

States of prompts are never kept: a row that taught has its own in memory, of any other one it is encoded here, used and
dropped. What stays of a row is its id, what was chosen for it and what that lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bs_cluster.router.fit import CrossFit, Judges
from bs_cluster.router.regret import Judged
from bs_cluster.router.routers import NetworkRouter
from bs_cluster.sweep.shards import Shard

# Numbers of all states in memory at a time, float32.
STATES_NUMBERS = 1 << 26

Prompt = Sequence[int]


def judge_shard(
    judges: Judges,
    shard: Shard,
    prompts: Sequence[Prompt],
    fold_B: np.ndarray,
    known: Mapping[int, np.ndarray],
    encode: Callable[[Sequence[Prompt]], Sequence[np.ndarray]],
    measure: Callable[[np.ndarray], None],
) -> Judged:
    """A shard's rows, each judged by what never saw its fold.

    ``prompts``, ``fold_B`` and the states that are ``known`` are of all rows, by their places among these. ``measure``
    is asked for what is chosen and not measured, (row of the shard, mask) pairs (N, 2) int64, into the shard's table.
    """
    table = shard.table
    fitted = CrossFit(*np.zeros((3, len(shard.rows)), dtype=np.int64))
    here = [row for row, place in enumerate(shard.places) if place in known]
    others = [row for row, place in enumerate(shard.places) if place not in known]
    chunks = _chunks(judges, others, [prompts[shard.start + row] for row in others])
    for rows, asked in [(here, None), *chunks]:
        if not rows:
            continue
        states = [known[shard.start + row] for row in rows] if asked is None else encode(asked)
        owners = [table.owners[row] for row in rows]
        chosen = judges.choose(states, owners, table.domains, fold_B[shard.start + np.array(rows)])
        for of_all_B, of_these_B in zip(fitted, chosen, strict=True):
            of_all_B[rows] = of_these_B
    row_N = np.tile(np.arange(len(shard.rows)), 2)
    mask_N = np.concatenate([fitted.routed_B, fitted.anchor_B])
    unknown_N = np.isnan(table.nll(row_N, mask_N))
    if unknown_N.any():
        measure(np.unique(np.stack([row_N, mask_N], axis=1)[unknown_N], axis=0))
    return Judged.of(table, fitted)


def _chunks(judges: Judges, rows: list[int], prompts: list[Prompt]) -> list[tuple[list[int], list[Prompt]]]:
    """As many rows at a time as have ``STATES_NUMBERS`` numbers in their states."""
    if not rows:
        return []
    numbers = len(judges.anchor.centre_F)
    if any(isinstance(served.router, NetworkRouter) for served in judges.served.values()):
        numbers = numbers // 2 * max(map(len, prompts))
    size = max(1, STATES_NUMBERS // numbers)
    return [(rows[at : at + size], prompts[at : at + size]) for at in range(0, len(rows), size)]
