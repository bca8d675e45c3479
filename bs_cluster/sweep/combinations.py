"""Subsets of a bundle's domains as bitmasks: bit d stands for domain d in the bundle's order, 0 is the base alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def all_masks(domain_count: int) -> range:
    """Every subset of ``domain_count`` domains, from the base alone to all of them."""
    return range(1 << domain_count)


def full_mask(domain_count: int) -> int:
    return (1 << domain_count) - 1


def mask_weights(mask: int, domain_count: int) -> list[float]:
    """Gate weight of each domain under ``mask``: 1.0 where its bit is set, else 0.0."""
    return [float(mask >> d & 1) for d in range(domain_count)]


def weights_of_each(masks: Sequence[int], domain_count: int) -> np.ndarray:
    """``mask_weights`` of many, float64 (N, D)."""
    return (np.array(masks, dtype=np.int64)[:, None] >> np.arange(domain_count) & 1).astype(np.float64)


def active_mask(weights: Sequence[float]) -> int:
    """The domains whose gate weight is not zero: the inverse of ``mask_weights`` on binary weights."""
    return sum(1 << d for d, weight in enumerate(weights) if weight != 0)


def mask_names(mask: int, domains: Sequence[str]) -> tuple[str, ...]:
    """The domains in ``mask``, in bundle order; empty for the base alone."""
    return tuple(name for d, name in enumerate(domains) if mask >> d & 1)
