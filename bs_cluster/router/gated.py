"""What rows lose under gates between zero and one: measured, never estimated.

Shapes: N rows that are asked for, D domains.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bs_cluster.sweep.combinations import active_mask
from bs_cluster.sweep.outcomes import OutcomeTable

# Summed losses (N,) in nats of rows of a table (N,) int64, each under its own gates (N, D).
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def gated_nll(table: OutcomeTable, row_N: np.ndarray, gates_ND: np.ndarray, score: Score) -> np.ndarray:
    """Summed losses (N,) of rows of ``table`` under these gates: as the sweep measured them where they are a
    combination of whole domains that it tried, else by ``score``, the same row under the same gates once."""
    whole_N = ((gates_ND == 0) | (gates_ND == 1)).all(axis=1)
    mask_N = np.array([active_mask(gates_D) for gates_D in gates_ND.tolist()], dtype=np.int64)
    nll_N = np.where(whole_N, table.nll(row_N, mask_N), np.nan)
    unknown_K = np.flatnonzero(np.isnan(nll_N))
    if len(unknown_K):
        asked = np.concatenate([row_N[unknown_K, None], gates_ND[unknown_K]], axis=1)
        distinct, of_K = np.unique(asked, axis=0, return_inverse=True)
        nll_N[unknown_K] = score(distinct[:, 0].astype(np.int64), distinct[:, 1:])[of_K.reshape(-1)]
    return nll_N
