"""What a sweep measures: the completion loss of each held-out row under combinations of domains.

Kept as one float32 column of rows for each combination that was asked for, never as Python objects per outcome: four
bytes an outcome, and from Parquet part to column by whole arrays.

Shapes: B rows, C combinations, N measurements.
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


class OutcomeTable:
    """Rows × combinations → completion loss, summed nats over so many tokens; NaN where nothing was measured.

    The rows are fixed at construction, in the caller's order; measurements come in through ``record`` and
    ``update``. ``domains`` is the bundle's order, the meaning of every mask's bits, and travels with the data.
    ``owners`` says whose each row is: one of the domains, or ``mixed:…`` and ``foreign:…`` (``sweep.owners``).
    """

    def __init__(self, row_ids: Sequence[str], owners: Sequence[str], domains: Sequence[str]):
        self.row_ids = tuple(row_ids)
        self.owners = tuple(owners)
        self.domains = tuple(domains)
        self.tokens_B = np.zeros(len(self.row_ids), dtype=np.int64)  # 0 for a row that nothing was measured of
        self._row_of = {row_id: row for row, row_id in enumerate(self.row_ids)}
        self._nll_B: dict[int, np.ndarray] = {}
        if len(self._row_of) != len(self.row_ids):
            repeated = next(row_id for row, row_id in enumerate(self.row_ids) if self._row_of[row_id] != row)
            raise DataError(f"row {repeated!r} occurs twice among the sweep rows; row ids must be unique")
        for owner in sorted(set(self.owners)):
            kind_of(owner, self.domains)  # raises for one that is neither domain, mixed nor foreign

    def __len__(self) -> int:
        """How many outcomes are measured."""
        return sum(int(np.isfinite(nll_B).sum()) for nll_B in self._nll_B.values())

    def record(self, row: int, mask: int, loss: RowLoss) -> None:
        """Add one measurement. A repeated one must agree (``CONFLICT_TOLERANCE``), and the first is kept: the lower
        of two, which would not hang on their order, would make every best of many look better than it is. Raises
        IntegrityError for a conflict or a broken loss.
        """
        self._add(np.array([row]), mask, np.array([loss.nll]), np.array([loss.tokens]))

    def update(self, other: OutcomeTable) -> None:
        """Add every measurement of ``other`` that is about one of this table's rows; its other rows are left out."""
        if other.domains != self.domains:
            raise IntegrityError(f"outcomes of the domains {other.domains} cannot be read as {self.domains}")
        pairs = [(row, theirs) for row, id in enumerate(self.row_ids) if (theirs := other._row_of.get(id)) is not None]
        for row, theirs in pairs:
            if other.owners[theirs] != self.owners[row]:
                raise IntegrityError(f"row {self.row_ids[row]!r} is {self.owners[row]!r}, not {other.owners[theirs]!r}")
        if not pairs:
            return
        ours_N, theirs_N = np.array(pairs).T
        for mask, nll_B in other._nll_B.items():
            known_N = np.isfinite(nll_B[theirs_N])
            self._add(ours_N[known_N], mask, nll_B[theirs_N[known_N]], other.tokens_B[theirs_N[known_N]])

    def losses(self, row: int) -> dict[int, float]:
        """Mean loss of one row under each combination measured, by mask, ascending."""
        found = {mask: float(self._nll_B[mask][row]) for mask in self.masks()}
        return {mask: nll / int(self.tokens_B[row]) for mask, nll in found.items() if np.isfinite(nll)}

    def nll_BC(self, masks: Sequence[int]) -> np.ndarray:
        """Summed losses of all rows under ``masks``, float64 (B, C), NaN where not measured."""
        empty_B = np.full(len(self.row_ids), np.nan, dtype=np.float32)
        return np.stack([self._nll_B.get(mask, empty_B) for mask in masks], axis=1).astype(np.float64)

    def loss_BC(self, masks: Sequence[int]) -> np.ndarray:
        """Mean losses of all rows under ``masks``, float64 (B, C), NaN where not measured."""
        return self.nll_BC(masks) / np.maximum(self.tokens_B, 1)[:, None]

    def masks(self) -> list[int]:
        """Every combination measured for at least one row, ascending."""
        return sorted(self._nll_B)

    def missing(self, masks: Iterable[int]) -> list[tuple[int, int]]:
        """(row, mask) pairs among ``masks`` that are not measured, row by row."""
        masks = list(masks)
        rows, columns = np.nonzero(np.isnan(self.nll_BC(masks)))
        return [(row, masks[column]) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]

    def subset(self, rows: Sequence[int]) -> Self:
        """The same table over these row indices, in this order."""
        part = type(self)([self.row_ids[r] for r in rows], [self.owners[r] for r in rows], self.domains)
        part.update(self)
        return part

    def to_arrow(self) -> pa.Table:
        """Long format (``SCHEMA``), sorted by row id and mask: equal contents give equal tables."""
        masks = self.masks()
        order_B = np.argsort(np.array(self.row_ids, dtype=object), kind="stable")
        nll_BC = self.nll_BC(masks)[order_B] if masks else np.empty((len(order_B), 0))
        rows_N, columns_N = np.nonzero(np.isfinite(nll_BC))
        source_N = order_B[rows_N]
        columns = (
            pa.array(self.row_ids, pa.string()).take(pa.array(source_N)),
            pa.array(self.owners, pa.string()).take(pa.array(source_N)),
            pa.array(np.array(masks, dtype=np.int64)[columns_N]),
            pa.array(nll_BC[rows_N, columns_N].astype(np.float32)),
            pa.array(self.tokens_B[source_N]),
        )
        return pa.Table.from_arrays(list(columns), schema=SCHEMA.with_metadata({"domains": json.dumps(self.domains)}))

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
        mask_N, nll_N, tokens_N = (table[name].to_numpy() for name in ("mask", "nll", "tokens"))
        for mask in np.unique(mask_N).tolist():
            own_N = np.flatnonzero(mask_N == mask)
            # Rows once each at a time, so that a repeated measurement meets the one before it.
            while len(own_N):
                _, first = np.unique(row_N[own_N], return_index=True)
                now_N = own_N[np.sort(first)]
                outcomes._add(row_N[now_N], mask, nll_N[now_N], tokens_N[now_N])
                own_N = np.setdiff1d(own_N, now_N)
        return outcomes

    def _add(self, rows_N: np.ndarray, mask: int, nll_N: np.ndarray, tokens_N: np.ndarray) -> None:
        """Measurements of different rows under one combination."""
        if not 0 <= mask <= full_mask(len(self.domains)):
            raise IntegrityError(f"mask {mask} is no combination of the {len(self.domains)} domains {self.domains}")

        def first(wrong_N: np.ndarray) -> tuple[int, int]:
            place = int(np.flatnonzero(wrong_N)[0])
            return place, int(rows_N[place])

        broken_N = ~np.isfinite(nll_N) | (tokens_N <= 0)
        if broken_N.any():
            place, row = first(broken_N)
            loss = RowLoss(float(nll_N[place]), int(tokens_N[place]))
            raise IntegrityError(f"{self._outcome(row, mask)} was measured as {loss}; a loss is finite, over 1+ tokens")
        before_N = self.tokens_B[rows_N]
        changed_N = (before_N != 0) & (before_N != tokens_N)
        if changed_N.any():
            place, row = first(changed_N)
            raise IntegrityError(
                f"row {self.row_ids[row]!r} was scored over {before_N[place]} and over {tokens_N[place]} tokens; "
                "the data changed between the two: sweep into a new area"
            )
        nll_B = self._nll_B.setdefault(mask, np.full(len(self.row_ids), np.nan, dtype=np.float32))
        known_N = np.where(np.isnan(nll_B[rows_N]), nll_N, nll_B[rows_N].astype(np.float64))
        gap_N, mean_N = np.abs(known_N - nll_N) / tokens_N, np.abs(known_N) / tokens_N
        conflict_N = gap_N > CONFLICT_TOLERANCE * (1 + mean_N)
        if conflict_N.any():
            place, row = first(conflict_N)
            raise IntegrityError(
                f"{self._outcome(row, mask)} was measured twice, as {known_N[place] / tokens_N[place]:.4f} and "
                f"{nll_N[place] / tokens_N[place]:.4f} nats per token; the model changed between the two: sweep into "
                "a new area"
            )
        self.tokens_B[rows_N] = tokens_N
        nll_B[rows_N] = known_N

    def _outcome(self, row: int, mask: int) -> str:
        return f"row {self.row_ids[row]!r} under {list(mask_names(mask, self.domains)) or 'the base alone'}"
