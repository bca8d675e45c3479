"""Which combinations to measure next, as a pure function of what is measured already.

A sweep asks ``next_requests`` until it answers with nothing. All state is in the table, so a sweep that was killed
goes on from its table and ends with the same outcomes.

Shapes: B rows, D domains, K combinations that a row's search knows, A rows that are still searching.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from bs_cluster.config.schema import SweepSection
from bs_cluster.sweep.combinations import all_masks, full_mask
from bs_cluster.sweep.outcomes import OutcomeTable


def search_kind(settings: SweepSection, domain_count: int) -> Literal["exhaustive", "adaptive"]:
    """How a bundle of this many domains is searched; ``auto`` turns adaptive above ``exhaustive_up_to``."""
    if settings.search != "auto":
        return settings.search
    return "exhaustive" if domain_count <= settings.exhaustive_up_to else "adaptive"


def outcomes_per_row(domain_count: int) -> int:
    """How many outcomes an adaptive search may take of a row: half of all, at most four a domain, and never fewer
    than it begins with (none, each alone, all)."""
    return max(min(1 << domain_count >> 1, 4 * domain_count), min(domain_count + 2, 1 << domain_count))


def most_outcomes(settings: SweepSection, domain_count: int) -> int:
    """The most that the search takes of a row."""
    return 1 << domain_count if search_kind(settings, domain_count) == "exhaustive" else outcomes_per_row(domain_count)


def first_outcomes(settings: SweepSection, domain_count: int) -> int:
    """What the search takes of a row in any case."""
    if search_kind(settings, domain_count) == "exhaustive":
        return 1 << domain_count
    return len(opening(domain_count))


def opening(domain_count: int) -> np.ndarray:
    """What an adaptive search begins with, ascending: the base, every single domain, and all of them, which every
    report compares with."""
    return np.unique([0, *(1 << d for d in range(domain_count)), full_mask(domain_count)])


def next_requests(table: OutcomeTable, settings: SweepSection) -> np.ndarray:
    """(row index, mask) pairs (N, 2) int64 to measure now, row by row; none when the search is over.

    Exhaustive: all that is missing of the 2^D. Adaptive: each row's next wave (see ``_adaptive_missing``).
    """
    domain_count = len(table.domains)
    if search_kind(settings, domain_count) == "exhaustive":
        return table.missing(all_masks(domain_count))
    return _adaptive_missing(table, settings.adaptive_width)


def _adaptive_missing(table: OutcomeTable, width: int) -> np.ndarray:
    """Every row's next unmeasured masks.

    A row's search begins with its ``opening``. Then, again and again, the best combination so far that was not looked
    around yet, of the best ``width``, has its neighbours measured: every domain added or taken away. Where the budget
    ends inside a neighbourhood, the neighbours go first whose domains gained most alone. It ends when the best have
    all been looked around: none of their neighbours is better. Waves are replayed from the start with the table as
    memo: what else happens to be measured cannot change the course of the search.
    """
    rows, domain_count = len(table.row_ids), len(table.domains)
    first, budget = opening(domain_count), outcomes_per_row(domain_count)
    mask_BK = np.full((rows, budget), -1, dtype=np.int64)  # -1 beyond what is known
    mask_BK[:, : len(first)] = first
    loss_BK = np.full((rows, budget), np.nan)
    around_BK = np.zeros((rows, budget), dtype=bool)
    count_B = np.full(rows, len(first))
    centres: list[np.ndarray] = []
    asked = [np.empty((0, 2), dtype=np.int64)]
    active_A = np.arange(rows)
    while len(active_A):
        at_N, column_N = np.nonzero((mask_BK[active_A] >= 0) & np.isnan(loss_BK[active_A]))
        row_N, mask_N = active_A[at_N], mask_BK[active_A[at_N], column_N]
        loss_N = table.nll(row_N, mask_N) / np.maximum(table.tokens_B[row_N], 1)
        loss_BK[row_N, column_N] = loss_N
        asked.append(np.stack([row_N, mask_N], axis=1)[np.isnan(loss_N)])
        waits_B = np.bincount(asked[-1][:, 0], minlength=rows) > 0
        active_A = active_A[~waits_B[active_A] & (count_B[active_A] < budget)]

        column_A = _next_centre(mask_BK[active_A], loss_BK[active_A], around_BK[active_A], width)
        active_A, column_A = active_A[column_A >= 0], column_A[column_A >= 0]
        around_BK[active_A, column_A] = True
        centre_A = mask_BK[active_A, column_A]
        near_AD = centre_A[:, None] ^ 1 << np.arange(domain_count)
        size_AD = np.bitwise_count(near_AD)
        new_AD = (size_AD > 1) & (size_AD < domain_count)
        for earlier_B in centres:  # the neighbours of these are known
            met_A1 = earlier_B[active_A, None]
            new_AD &= (met_A1 < 0) | (np.bitwise_count(near_AD ^ np.maximum(met_A1, 0)) != 1)
        centres.append(np.full(rows, -1, dtype=np.int64))
        centres[-1][active_A] = centre_A

        room_A, gain_AD = budget - count_B[active_A], loss_BK[active_A, 1 : domain_count + 1] - loss_BK[active_A, :1]
        short_A = new_AD.sum(axis=1) > room_A
        new_AD[short_A] &= _promise_rank(near_AD[short_A], new_AD[short_A], gain_AD[short_A]) < room_A[short_A, None]
        at_N, domain_N = np.nonzero(new_AD)
        place_N = count_B[active_A[at_N]] + (np.cumsum(new_AD, axis=1) - 1)[at_N, domain_N]
        mask_BK[active_A[at_N], place_N] = near_AD[at_N, domain_N]
        count_B[active_A] += new_AD.sum(axis=1)
    found = np.concatenate(asked)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _next_centre(mask_AK: np.ndarray, loss_AK: np.ndarray, around_AK: np.ndarray, width: int) -> np.ndarray:
    """The column (A,) of each row's best combination that was not looked around, of its best ``width``; -1 for none.
    Of equal losses the smaller combination is better, then the lower mask."""
    rows = np.arange(len(mask_AK))
    column_A = np.full(len(mask_AK), -1)
    left_AK, size_AK = mask_AK >= 0, np.bitwise_count(mask_AK)
    for _ in range(width):
        best_AK = left_AK.copy()
        for values_AK in (loss_AK, size_AK, mask_AK):
            highest = np.inf if values_AK is loss_AK else np.iinfo(values_AK.dtype).max
            kept_AK = np.where(best_AK, values_AK, highest)
            best_AK &= kept_AK == kept_AK.min(axis=1, keepdims=True)
        best_A = best_AK.argmax(axis=1)
        found_A = (column_A < 0) & best_AK.any(axis=1)
        column_A = np.where(found_A & ~around_AK[rows, best_A], best_A, column_A)
        if not (found_A & (column_A < 0)).any():
            break
        left_AK[rows, best_A] = False
    return column_A


def _promise_rank(near_AD: np.ndarray, new_AD: np.ndarray, gain_AD: np.ndarray) -> np.ndarray:
    """The place (A, D) of each new neighbour when those go first whose domains together lose least, each alone."""
    promise_AD = np.zeros(near_AD.shape)
    for d in range(near_AD.shape[1]):
        promise_AD += np.where(near_AD >> d & 1, gain_AD[:, d, None], 0.0)
    order_AD = np.lexsort((near_AD, np.where(new_AD, promise_AD, np.inf)), axis=1)
    return np.argsort(order_AD, axis=1)
