"""Losses of combinations that an adaptive sweep left out, predicted from those that it measured.

A ridge regression over all rows: a combination's loss from what each row has in any case, the base's loss, that of its
domains alone and that of all together; a combination's own offset is learned too, as far as its rows allow. A search
goes where it promises to be good, so what it passed by is worse than it looks: the regression's own error is added to
each prediction, and none is believed that is below the best of its row. It serves to learn and to validate inside the
training rows; whatever judges a meta-router is measured.

Shapes: B rows, C combinations, D domains, N measurements, X regressors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bs_cluster.sweep.combinations import full_mask
from bs_cluster.sweep.outcomes import OutcomeTable

# So many rows' worth of doubt about each slope and each combination's own offset.
RIDGE = 3.0


def filled_nll(table: OutcomeTable, masks: Sequence[int]) -> np.ndarray:
    """Summed losses (B, C) float64: measured where they were, else predicted. Every row has none, singles and all."""
    measured_BC = table.loss_BC(masks)
    lacking_BC = np.isnan(measured_BC)
    if lacking_BC.any():
        guess_BC = _predicted(table, masks, measured_BC)
        best_B1 = np.nanmin(measured_BC, axis=1, keepdims=True)
        measured_BC = np.where(lacking_BC, np.maximum(guess_BC, best_B1), measured_BC)
    return measured_BC * table.tokens_B[:, None]


def _predicted(table: OutcomeTable, masks: Sequence[int], measured_BC: np.ndarray) -> np.ndarray:
    """Losses (B, C) of all combinations, as the measured ones predict them."""
    domain_count = len(table.domains)
    member_CD = np.array([[mask >> d & 1 for d in range(domain_count)] for mask in masks], dtype=bool)
    single_BD = table.loss_BC([1 << d for d in range(domain_count)])
    base_B1, all_B1 = np.split(table.loss_BC([0, full_mask(domain_count)]), 2, axis=1)
    size_C = member_CD.sum(axis=1)
    lowest_BC, highest_BC = np.full((2, *measured_BC.shape), np.nan)
    for place, member_D in enumerate(member_CD):
        alone = single_BD[:, member_D] if member_D.any() else base_B1
        lowest_BC[:, place], highest_BC[:, place] = alone.min(axis=1), alone.max(axis=1)
    mean_BC = single_BD @ member_CD.T / np.maximum(size_C, 1)
    way_C = np.maximum(size_C - 1, 0) / max(domain_count - 1, 1)  # from each alone, 0, to all together, 1
    regressors = np.broadcast_arrays(base_B1, lowest_BC, mean_BC, highest_BC, way_C, np.sqrt(way_C))
    known_BC = np.isfinite(measured_BC) & (size_C > 0)
    taught_NX, loss_N = np.stack([values_BC[known_BC] for values_BC in regressors], axis=1), measured_BC[known_BC]
    centre_X, scale_X = taught_NX.mean(axis=0), taught_NX.std(axis=0) + 1e-6
    standard_NX = (taught_NX - centre_X) / scale_X
    normal_XX = standard_NX.T @ standard_NX + RIDGE * np.eye(len(centre_X))
    slope_X = np.linalg.solve(normal_XX, standard_NX.T @ (loss_N - loss_N.mean())) / scale_X
    guess_BC = loss_N.mean() + sum(
        slope * (values_BC - centre) for slope, values_BC, centre in zip(slope_X, regressors, centre_X, strict=True)
    )
    # What a row's domains cost each other, all of them together, they cost in part where some are.
    everything = list(masks).index(full_mask(domain_count))
    guess_BC += way_C * (all_B1 - guess_BC[:, [everything]])
    left_BC = np.where(known_BC, measured_BC - guess_BC, 0.0)
    guess_BC = guess_BC + left_BC.sum(axis=0) / (known_BC.sum(axis=0) + RIDGE)
    return guess_BC + np.sqrt(np.mean((measured_BC - guess_BC)[known_BC] ** 2))
