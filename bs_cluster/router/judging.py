"""All rows of a sweep judged, a shard of them in memory at a time.

A row is judged by what it loses under the very gates that it would be answered under. States of prompts are never kept:
a row that taught has its own in memory, of any other one it is encoded here, used and dropped. What stays of a row is
its id, its gates and what it lost.

Shapes: B rows of the shard, N of them asked for, D domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bs_cluster.router.fit import CrossFit, Judges
from bs_cluster.router.gated import Score, gated_nll
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
    score: Score,
) -> Judged:
    """A shard's rows, each judged by what never saw its fold.

    ``prompts``, ``fold_B`` and the states that are ``known`` are of all rows, by their places among these. ``score`` is
    asked once, for gates that are no combination which the sweep measured.
    """
    table, rows = shard.table, len(shard.rows)
    off_BD = np.zeros((rows, len(table.domains)))
    fitted = CrossFit(off_BD, off_BD.copy(), np.zeros(rows, dtype=np.int64))
    here = [row for row, place in enumerate(shard.places) if place in known]
    others = [row for row, place in enumerate(shard.places) if place not in known]
    chunks = _chunks(judges, others, [prompts[shard.start + row] for row in others])
    for some, asked in [(here, None), *chunks]:
        if not some:
            continue
        states = [known[shard.start + row] for row in some] if asked is None else encode(asked)
        owners = [table.owners[row] for row in some]
        decided = judges.choose(states, owners, table.domains, fold_B[shard.start + np.array(some)])
        for of_all, of_these in zip(fitted, decided, strict=True):
            of_all[some] = of_these
    row_N = np.tile(np.arange(rows), 2)
    nll_N = gated_nll(table, row_N, np.concatenate([fitted.routed_BD, fitted.anchor_BD]), score)
    return Judged.of(table, fitted, nll_N[:rows], nll_N[rows:])


def _chunks(judges: Judges, rows: list[int], prompts: list[Prompt]) -> list[tuple[list[int], list[Prompt]]]:
    """As many rows at a time as have ``STATES_NUMBERS`` numbers in their states."""
    if not rows:
        return []
    numbers = len(judges.anchor.centre_F)
    if any(isinstance(served.router, NetworkRouter) for served in judges.served.values()):
        numbers = numbers // 2 * max(map(len, prompts))
    size = max(1, STATES_NUMBERS // numbers)
    return [(rows[at : at + size], prompts[at : at + size]) for at in range(0, len(rows), size)]
