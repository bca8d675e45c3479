"""How familiar a prompt is: whether prompts like it taught, or it only looks like the domain that it is nearest to.

Whoever looks like a domain need not want its answers, and nobody has measured what a stranger wants. A prompt is at
home where it lies as near to training prompts of its nearest domain as nine in ten of that domain's own do, and a
stranger beyond that domain's limit. Mixed kinds are asked for as domains are, and have a home of their own among their
rows that taught. Foreign kinds have none.

Shapes: B prompts, K whitened directions, D domains, M mixed rows that taught, J their kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bs_cluster.router.anchor import FOLDS, FOREIGN_QUANTILE, HOME_QUANTILE, Anchor, similarity


@dataclass(frozen=True)
class Kinds:
    """Arrays: directions ``mixed_MK`` (float32) of mixed rows that taught, the kind ``kind_M`` (int64) of each, and of
    each kind what ``limit_D`` and ``home_D`` are of a domain (J, float32)."""

    mixed_MK: np.ndarray
    kind_M: np.ndarray
    kind_limit_J: np.ndarray
    kind_home_J: np.ndarray

    @classmethod
    def of(cls, anchor: Anchor, directions_BK: np.ndarray, owners: Sequence[str]) -> Kinds:
        """Those of rows that taught; a kind needs ``FOLDS`` of them to be known, as a domain does."""
        owner_B = np.array(owners, dtype=object)
        mixed = sorted({owner for owner in owners if owner.startswith("mixed:")})
        rows = [np.flatnonzero(owner_B == owner) for owner in mixed]
        rows = [own for own in rows if len(own) >= FOLDS]
        kind_M = np.repeat(np.arange(len(rows)), [len(own) for own in rows]).astype(np.int64)
        mixed_MK = directions_BK[np.concatenate([*rows, np.empty(0, dtype=np.int64)]).astype(np.int64)]
        reached_MJ = similarity(mixed_MK, mixed_MK, kind_M, len(rows), np.arange(len(mixed_MK)))
        # Rows of one pattern are nearly one row, and nothing else would be at home: it reaches as far as domains do.
        widest = anchor.limit_D.mean(), anchor.home_D.mean()
        ends = [np.quantile(reached_MJ[kind_M == j, j], (FOREIGN_QUANTILE, HOME_QUANTILE)) for j in range(len(rows))]
        ends_J2 = np.minimum(np.array(ends).reshape(-1, 2), widest).astype(np.float32)
        return cls(mixed_MK, kind_M, ends_J2[:, 0], ends_J2[:, 1])


def familiarity(anchor: Anchor, kinds: Kinds, directions_BK: np.ndarray, similarity_BD: np.ndarray) -> np.ndarray:
    """From 0, a stranger, to 1, at home (B,)."""
    near_BJ = similarity(directions_BK, kinds.mixed_MK, kinds.kind_M, len(kinds.kind_limit_J))
    near_BG = np.concatenate([similarity_BD, near_BJ], axis=1)
    nearest_B = near_BG.argmax(axis=1)
    limit_B = np.concatenate([anchor.limit_D, kinds.kind_limit_J])[nearest_B]
    home_B = np.concatenate([anchor.home_D, kinds.kind_home_J])[nearest_B]
    return np.clip((near_BG.max(axis=1) - limit_B) / np.maximum(home_B - limit_B, 1e-6), 0.0, 1.0)
