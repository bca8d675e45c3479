"""What a sweep measures: the completion loss of each held-out row under combinations of domains.

Kept sparse, twelve bytes an outcome whatever the number of combinations, and never as Python objects: a search among
fifty domains takes some two hundred outcomes of a row, and rows share few of them.

Shapes: B rows, C combinations, N measurements, K different ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import pyarrow as pa

from bs_cluster.errors import DataError, IntegrityError
from bs_cluster.records import RowLoss
from bs_cluster.sweep.combinations import full_mask, mask_names
from bs_cluster.sweep.owners import kind_of

# Two measurements of one outcome may differ by what batch composition does to bf16 sums, in nats per token: this
# much, plus the same share of the loss. Anything more means that they were taken on different models or data.
CONFLICT_TOLERANCE = 0.05

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("domain", pa.string()),
        ("mask", pa.int64()),
        ("nll", pa.float32()),
        ("tokens", pa.int64()),
    ]
)
# A row and the number of a combination are one key: outcomes lie row by row, and are found by bisection.
NUMBER_BITS = 32


class OutcomeTable:
    """Rows × combinations → completion loss, summed nats over so many tokens; NaN where nothing was measured.

    The rows are fixed at construction, in the caller's order; measurements come in through ``record``, ``add`` and
    ``update``. ``domains`` is the bundle's order, the meaning of every mask's bits, and travels with the data.
    ``owners`` says whose each row is: one of the domains, or ``mixed:…`` and ``foreign:…`` (``sweep.owners``).
    """

    def __init__(self, row_ids: Sequence[str], owners: Sequence[str], domains: Sequence[str]):
        self.row_ids = tuple(row_ids)
        self.owners = tuple(owners)
        self.domains = tuple(domains)
        self.tokens_B = np.zeros(len(self.row_ids), dtype=np.int64)  # 0 for a row that nothing was measured of
        self._row_of = {row_id: row for row, row_id in enumerate(self.row_ids)}
        self._number: dict[int, int] = {}  # of each combination, in the order in which they came
        self._key_N = np.empty(0, dtype=np.int64)  # ascending
        self._nll_N = np.empty(0, dtype=np.float32)
        if len(self._row_of) != len(self.row_ids):
            repeated = next(row_id for row, row_id in enumerate(self.row_ids) if self._row_of[row_id] != row)
            raise DataError(f"row {repeated!r} occurs twice among the sweep rows; row ids must be unique")
        for owner in sorted(set(self.owners)):
            kind_of(owner, self.domains)  # raises for one that is neither domain, mixed nor foreign

    def __len__(self) -> int:
        """How many outcomes are measured."""
        return len(self._key_N)

    def record(self, row: int, mask: int, loss: RowLoss) -> None:
        """Add one measurement, as ``add`` does."""
        self.add(np.array([row]), np.array([mask]), np.array([loss.nll]), np.array([loss.tokens]))

    def add(self, row_N: np.ndarray, mask_N: np.ndarray, nll_N: np.ndarray, tokens_N: np.ndarray) -> None:
        """Add measurements. A repeated one must agree (``CONFLICT_TOLERANCE``), and the first is kept: the lower of
        two, which would not hang on their order, would make every best of many look better than it is. Raises
        IntegrityError for a conflict or a broken loss.
        """
        if not len(row_N):
            return
        self.check(row_N, mask_N, nll_N, tokens_N)
        key_N = row_N << NUMBER_BITS | self._numbers(mask_N)
        key_K, first_K, of_N = np.unique(key_N, return_index=True, return_inverse=True)
        place_K, held_K = self._find(key_K)
        known_K = nll_N[first_K].astype(np.float64)
        known_K[held_K] = self._nll_N[place_K[held_K]]
        known_N = known_K[of_N]
        conflict_N = np.abs(known_N - nll_N) / tokens_N > CONFLICT_TOLERANCE * (1 + np.abs(known_N) / tokens_N)
        if conflict_N.any():
            at = int(conflict_N.argmax())
            raise IntegrityError(
                f"{self._outcome(row_N[at], mask_N[at])} was measured twice, as {known_N[at] / tokens_N[at]:.4f} and "
                f"{nll_N[at] / tokens_N[at]:.4f} nats per token; the model changed between the two: sweep into a new "
                "area"
            )
        self.tokens_B[row_N] = tokens_N
        self._key_N = np.insert(self._key_N, place_K[~held_K], key_K[~held_K])
        self._nll_N = np.insert(self._nll_N, place_K[~held_K], known_K[~held_K])

    def check(self, row_N: np.ndarray, mask_N: np.ndarray, nll_N: np.ndarray, tokens_N: np.ndarray) -> None:
        """Raises IntegrityError for a measurement that is broken by itself, or is over other tokens of its row."""
        strange_N = (mask_N < 0) | (mask_N > full_mask(len(self.domains)))
        if strange_N.any():
            mask = int(mask_N[strange_N.argmax()])
            raise IntegrityError(f"mask {mask} is no combination of the {len(self.domains)} domains {self.domains}")
        broken_N = ~np.isfinite(nll_N) | (tokens_N <= 0)
        if broken_N.any():
            at = int(broken_N.argmax())
            loss = RowLoss(float(nll_N[at]), int(tokens_N[at]))
            told = f"{self._outcome(row_N[at], mask_N[at])} was measured as {loss}"
            raise IntegrityError(f"{told}; a loss is finite, over 1+ tokens")
        row_K, first_K, of_N = np.unique(row_N, return_index=True, return_inverse=True)
        before_N = np.where(self.tokens_B[row_K] > 0, self.tokens_B[row_K], tokens_N[first_K])[of_N]
        changed_N = before_N != tokens_N
        if changed_N.any():
            at = int(changed_N.argmax())
            raise IntegrityError(
                f"row {self.row_ids[row_N[at]]!r} was scored over {before_N[at]} and over {tokens_N[at]} tokens; "
                "the data changed between the two: sweep into a new area"
            )

    def update(self, other: OutcomeTable) -> None:
        """Add every measurement of ``other`` that is about one of this table's rows; its other rows are left out."""
        if other.domains != self.domains:
            raise IntegrityError(f"outcomes of the domains {other.domains} cannot be read as {self.domains}")
        ours_B = np.array([self._row_of.get(row_id, -1) for row_id in other.row_ids], dtype=np.int64)
        for theirs in np.flatnonzero(ours_B >= 0).tolist():
            row = int(ours_B[theirs])
            if other.owners[theirs] != self.owners[row]:
                raise IntegrityError(f"row {self.row_ids[row]!r} is {self.owners[row]!r}, not {other.owners[theirs]!r}")
        row_N, mask_N, nll_N = other.outcomes()
        mine_N = ours_B[row_N] >= 0
        row_N = row_N[mine_N]
        self.add(ours_B[row_N], mask_N[mine_N], nll_N[mine_N], other.tokens_B[row_N])

    def outcomes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All of it in long format, row by row: row (N,) and mask (N,) int64, summed loss (N,) float32."""
        row_N, number_N = self._key_N >> NUMBER_BITS, self._key_N & ((1 << NUMBER_BITS) - 1)
        return row_N, self._masks()[number_N], self._nll_N

    def losses(self, row: int) -> dict[int, float]:
        """Mean loss of one row under each combination measured, by mask, ascending."""
        own = slice(*np.searchsorted(self._key_N, np.array([row, row + 1]) << NUMBER_BITS))
        masks = list(self._number)
        number_N = (self._key_N[own] & ((1 << NUMBER_BITS) - 1)).tolist()
        tokens = int(self.tokens_B[row])
        found = {masks[number]: nll / tokens for number, nll in zip(number_N, self._nll_N[own].tolist(), strict=True)}
        return dict(sorted(found.items()))

    def nll(self, row_N: np.ndarray, mask_N: np.ndarray) -> np.ndarray:
        """Summed loss of each row under its mask, float64 of any one shape, NaN where not measured."""
        if not len(self):
            return np.full(mask_N.shape, np.nan)
        masks = self._masks()
        order = np.argsort(masks)
        number_N = order[np.minimum(np.searchsorted(masks, mask_N, sorter=order), len(masks) - 1)]
        place_N, held_N = self._find(row_N << NUMBER_BITS | number_N)
        held_N &= masks[number_N] == mask_N
        return np.where(held_N, self._nll_N[np.minimum(place_N, len(self) - 1)], np.nan).astype(np.float64)

    def nll_BC(self, masks: Sequence[int]) -> np.ndarray:
        """Summed losses of all rows under ``masks``, float64 (B, C), NaN where not measured."""
        grid = np.meshgrid(np.arange(len(self.row_ids)), np.array(masks, dtype=np.int64), indexing="ij")
        return self.nll(*grid)

    def loss_BC(self, masks: Sequence[int]) -> np.ndarray:
        """Mean losses of all rows under ``masks``, float64 (B, C), NaN where not measured."""
        return self.nll_BC(masks) / np.maximum(self.tokens_B, 1)[:, None]

    def best_nll(self) -> np.ndarray:
        """Summed loss (B,) of each row under the best combination measured, NaN where none was."""
        row_B, start_B = np.unique(self._key_N >> NUMBER_BITS, return_index=True)
        best_B = np.full(len(self.row_ids), np.nan)
        if len(row_B):
            best_B[row_B] = np.minimum.reduceat(self._nll_N, start_B)
        return best_B

    def masks(self) -> list[int]:
        """Every combination measured for at least one row, ascending."""
        return sorted(self._number)

    def missing(self, masks: Iterable[int]) -> np.ndarray:
        """(row, mask) pairs (N, 2) int64 among ``masks`` that are not measured, row by row."""
        mask_C = list(masks)
        row_N, column_N = np.nonzero(np.isnan(self.nll_BC(mask_C)))
        return np.stack([row_N, np.array(mask_C, dtype=np.int64)[column_N]], axis=1)

    def subset(self, rows: Sequence[int]) -> Self:
        """The same table over these row indices, in this order."""
        part = type(self)([self.row_ids[r] for r in rows], [self.owners[r] for r in rows], self.domains)
        part.update(self)
        return part

    def to_arrow(self) -> pa.Table:
        """Long format (``SCHEMA``), sorted by row id and mask: equal contents give equal tables."""
        row_N, mask_N, nll_N = self.outcomes()
        rank_B = np.empty(len(self.row_ids), dtype=np.int64)
        rank_B[np.argsort(np.array(self.row_ids, dtype=object), kind="stable")] = np.arange(len(self.row_ids))
        order_N = np.lexsort((mask_N, rank_B[row_N]))
        return outcomes_table(self, row_N[order_N], mask_N[order_N], nll_N[order_N], self.tokens_B[row_N[order_N]])

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """The table that ``to_arrow`` wrote, or several of them concatenated; rows sorted by id.

        Raises IntegrityError when columns or the domain order are absent, or duplicates disagree.
        """
        metadata = table.schema.metadata or {}
        if b"domains" not in metadata or not set(SCHEMA.names) <= set(table.column_names):
            raise IntegrityError(
                f"outcomes need the columns {SCHEMA.names} and the domain order in their schema metadata; "
                f"got the columns {table.column_names} and the metadata {sorted(metadata)}"
            )
        ids = table["row_id"].combine_chunks().dictionary_encode()
        names = ids.dictionary.to_pylist()
        order = sorted(range(len(names)), key=names.__getitem__)
        row_N = np.argsort(np.array(order, dtype=np.int64))[ids.indices.to_numpy()]
        first_B = np.unique(row_N, return_index=True)[1]
        owners = table["domain"].take(pa.array(first_B)).to_pylist()
        outcomes = cls([names[i] for i in order], owners, json.loads(metadata[b"domains"]))
        outcomes.add(row_N, *(table[name].to_numpy() for name in ("mask", "nll", "tokens")))
        return outcomes

    def _masks(self) -> np.ndarray:
        """The combinations by number."""
        return np.fromiter(self._number, np.int64, len(self._number))

    def _numbers(self, mask_N: np.ndarray) -> np.ndarray:
        """The number of each mask; one that is new gets the next."""
        mask_K, of_N = np.unique(mask_N, return_inverse=True)
        number_K = [self._number.setdefault(mask, len(self._number)) for mask in mask_K.tolist()]
        return np.array(number_K, dtype=np.int64)[of_N]

    def _find(self, key_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each key is, or would go, and whether it is there."""
        place_N = np.searchsorted(self._key_N, key_N)
        held_N = place_N < len(self._key_N)
        held_N[held_N] = self._key_N[place_N[held_N]] == key_N[held_N]
        return place_N, held_N

    def _outcome(self, row: int, mask: int) -> str:
        return f"row {self.row_ids[row]!r} under {list(mask_names(mask, self.domains)) or 'the base alone'}"


def outcomes_table(
    rows: OutcomeTable, row_N: np.ndarray, mask_N: np.ndarray, nll_N: np.ndarray, tokens_N: np.ndarray
) -> pa.Table:
    """Measurements of these rows of ``rows`` in long format (``SCHEMA``), as they come."""
    columns = [
        pa.array(rows.row_ids, pa.string()).take(pa.array(row_N)),
        pa.array(rows.owners, pa.string()).take(pa.array(row_N)),
        pa.array(mask_N, pa.int64()),
        pa.array(nll_N, pa.float32()),
        pa.array(tokens_N, pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata({"domains": json.dumps(rows.domains)}))
