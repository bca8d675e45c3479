"""What the sweep found, by whose rows they are: how much each combination of domains gains over the base.

Shapes: W owners of rows, M masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def mask_gains(outcomes: Iterable[pa.Table], owners: Sequence[str]) -> MaskGains:
    """Token-weighted mean gain of every scored mask over mask 0, on the rows that have both; whole rows in each table.

    An adaptive search scores different masks on different rows; comparing each mask with the base on its own rows
    keeps a mask from looking good because its rows were easy.
    """
    sums: dict[tuple[str, int], tuple[float, int]] = {}
    for table in outcomes:
        _add_gains(sums, table)
    masks = tuple(sorted({mask for _, mask in sums}, key=lambda mask: (mask.bit_count(), mask)))
    row_of, column_of = ({value: place for place, value in enumerate(values)} for values in (owners, masks))
    gain_WM = np.full((len(owners), len(masks)), np.nan)
    for (owner, mask), (saved, tokens) in sums.items():
        if owner in row_of and tokens:
            gain_WM[row_of[owner], column_of[mask]] = saved / tokens
    return MaskGains(tuple(owners), masks, gain_WM)


def _add_gains(sums: dict[tuple[str, int], tuple[float, int]], table: pa.Table) -> None:
    """Adds to each owner's and mask's nats saved, and the tokens that they were saved on."""
    rows, names = (table[name].combine_chunks().dictionary_encode() for name in ("row_id", "domain"))
    row_N, owner_N = rows.indices.to_numpy(), names.indices.to_numpy()
    mask_N, nll_N, tokens_N = (table[name].to_numpy() for name in ("mask", "nll", "tokens"))
    base_B = np.full(len(rows.dictionary), np.nan)
    base_B[row_N[mask_N == 0]] = nll_N[mask_N == 0]
    saved_N = base_B[row_N] - nll_N
    known_N = np.isfinite(saved_N)
    mask_K, number_N = np.unique(mask_N, return_inverse=True)
    cell_N = owner_N[known_N].astype(np.int64) * len(mask_K) + number_N[known_N]
    saved_K, tokens_K = np.bincount(cell_N, saved_N[known_N]), np.bincount(cell_N, tokens_N[known_N])
    owners = names.dictionary.to_pylist()
    for cell in np.unique(cell_N).tolist():
        key = owners[cell // len(mask_K)], int(mask_K[cell % len(mask_K)])
        saved, tokens = sums.get(key, (0.0, 0))
        sums[key] = saved + float(saved_K[cell]), tokens + int(tokens_K[cell])


def mask_names(mask: int, domains: Sequence[str]) -> list[str]:
    """The domains that fire under ``mask``."""
    return [domain for bit, domain in enumerate(domains) if mask >> bit & 1]
