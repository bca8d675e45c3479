"""What the sweep found, by whose rows they are: how much each combination of domains gains over the base.

Shapes: W owners of rows, M masks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class MaskGains:
    """``gain_WM``: nats per completion token saved against the base on an owner's rows, NaN where never scored."""

    owners: tuple[str, ...]
    masks: tuple[int, ...]
    gain_WM: np.ndarray

    def best(self, owner: str) -> tuple[int, float] | None:
        """The mask that gains most on ``owner``'s rows, the smaller combination on a tie; None if none was scored."""
        gain_M = self.gain_WM[self.owners.index(owner)]
        scored = [(gain, mask) for gain, mask in zip(gain_M.tolist(), self.masks, strict=True) if np.isfinite(gain)]
        if not scored:
            return None
        gain, mask = min(scored, key=lambda pair: (-pair[0], pair[1].bit_count(), pair[1]))
        return mask, gain


def mask_gains(outcomes: pa.Table | None, owners: Sequence[str]) -> MaskGains:
    """Token-weighted mean gain of every scored mask over mask 0, on the rows that have both.

    An adaptive search scores different masks on different rows; comparing each mask with the base on its own rows
    keeps a mask from looking good because its rows were easy.
    """
    scores: dict[str, dict[int, tuple[float, int]]] = defaultdict(dict)
    owner_of: dict[str, str] = {}
    if outcomes is not None:
        columns = (outcomes.column(name).to_pylist() for name in ("row_id", "domain", "mask", "nll", "tokens"))
        for row_id, owner, mask, nll, tokens in zip(*columns, strict=True):
            scores[row_id][int(mask)] = (float(nll), int(tokens))
            owner_of[row_id] = owner

    saved: dict[tuple[str, int], float] = defaultdict(float)
    counted: dict[tuple[str, int], int] = defaultdict(int)
    for row_id, by_mask in scores.items():
        if 0 not in by_mask:
            continue
        base_nll, _ = by_mask[0]
        for mask, (nll, tokens) in by_mask.items():
            saved[owner_of[row_id], mask] += base_nll - nll
            counted[owner_of[row_id], mask] += tokens

    masks = tuple(sorted({mask for _, mask in saved}, key=lambda mask: (mask.bit_count(), mask)))
    gain_WM = np.full((len(owners), len(masks)), np.nan)
    for (owner, mask), total in saved.items():
        if owner in owners and counted[owner, mask]:
            gain_WM[list(owners).index(owner), masks.index(mask)] = total / counted[owner, mask]
    return MaskGains(tuple(owners), masks, gain_WM)


def mask_names(mask: int, domains: Sequence[str]) -> list[str]:
    """The domains that fire under ``mask``."""
    return [domain for bit, domain in enumerate(domains) if mask >> bit & 1]
