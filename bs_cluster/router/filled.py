"""Losses of combinations that an adaptive sweep left out, estimated from those that it measured.

Domains add up, less what they cost each other: the gap between all of them together and their sum is spread evenly over
pairs. It serves to learn and to validate inside the training rows; whatever judges a meta-router is measured.

Shapes: B rows, C combinations, D domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bs_cluster.sweep.combinations import full_mask
from bs_cluster.sweep.outcomes import OutcomeTable


def filled_nll(table: OutcomeTable, masks: Sequence[int]) -> np.ndarray:
    """Summed losses (B, C) float64: measured where they were, else estimated. Every row has none, singles and all."""
    domain_count = len(table.domains)
    member_CD = np.array([[mask >> d & 1 for d in range(domain_count)] for mask in masks], dtype=np.float64)
    size_C = member_CD.sum(axis=1)
    base_B, all_B = table.nll_BC([0, full_mask(domain_count)]).T
    gain_BD = table.nll_BC([1 << d for d in range(domain_count)]) - base_B[:, None]
    pairs = domain_count * (domain_count - 1) / 2
    cost_B = (all_B - base_B - gain_BD.sum(axis=1)) / pairs if pairs else np.zeros(len(base_B))
    guess_BC = base_B[:, None] + gain_BD @ member_CD.T + cost_B[:, None] * (size_C * (size_C - 1) / 2)
    # A sum of nats is never negative, whatever the gains add up to.
    measured_BC = table.nll_BC(masks)
    return np.where(np.isnan(measured_BC), np.maximum(guess_BC, 0.0), measured_BC)
