"""What a sweep measures: the completion loss of each held-out row under combinations of domains.

Shapes: B rows, C combinations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
import pyarrow as pa

from bs_cluster.errors import DataError, IntegrityError
from bs_cluster.records import RowLoss
from bs_cluster.sweep.combinations import full_mask, mask_names

# Two measurements of one outcome may differ by what batch composition does to bf16 sums, in nats per token: this
# much, plus the same share of the loss. Anything more means that they were taken on different models or data.
CONFLICT_TOLERANCE = 0.05

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("domain", pa.string()),
        ("mask", pa.int64()),
        ("nll", pa.float64()),
        ("tokens", pa.int64()),
    ]
)


class OutcomeTable:
    """Rows × combinations → mean completion loss in nats per token; NaN where nothing was measured.

    The rows are fixed at construction, in the caller's order; measurements come in through ``record`` and
    ``update``. ``domains`` is the bundle's order, the meaning of every mask's bits, and travels with the data.
    """

    def __init__(self, row_ids: Sequence[str], row_domains: Sequence[str], domains: Sequence[str]):
        self.row_ids = tuple(row_ids)
        self.row_domains = tuple(row_domains)
        self.domains = tuple(domains)
        self._row_of = {row_id: row for row, row_id in enumerate(self.row_ids)}
        self._nll: list[dict[int, float]] = [{} for _ in self.row_ids]
        self._tokens = [0] * len(self.row_ids)
        if len(self._row_of) != len(self.row_ids):
            repeated = next(row_id for row, row_id in enumerate(self.row_ids) if self._row_of[row_id] != row)
            raise DataError(f"row {repeated!r} occurs twice among the sweep rows; row ids must be unique")
        if strange := sorted(set(self.row_domains) - set(self.domains)):
            raise DataError(f"sweep rows belong to {strange}, the bundle has only {list(self.domains)}")

    def __len__(self) -> int:
        """How many outcomes are measured."""
        return sum(map(len, self._nll))

    @property
    def tokens_B(self) -> np.ndarray:
        """Completion tokens of each row, int64; 0 for a row that nothing was measured of."""
        return np.array(self._tokens, dtype=np.int64)

    @property
    def label_B(self) -> np.ndarray:
        """Index of each row's own domain in the bundle's order."""
        return np.array([self.domains.index(name) for name in self.row_domains], dtype=np.int64)

    def record(self, row: int, mask: int, loss: RowLoss) -> None:
        """Add one measurement. A repeated one must agree (``CONFLICT_TOLERANCE``); the lower is kept, so that the
        order in which measurements arrive does not matter. Raises IntegrityError for a conflict or a broken loss.
        """
        if not math.isfinite(loss.nll) or loss.tokens <= 0:
            raise IntegrityError(f"{self._outcome(row, mask)} was measured as {loss}; a loss is finite, over 1+ tokens")
        if not 0 <= mask <= full_mask(len(self.domains)):
            raise IntegrityError(f"mask {mask} is no combination of the {len(self.domains)} domains {self.domains}")
        if self._tokens[row] not in (0, loss.tokens):
            raise IntegrityError(
                f"row {self.row_ids[row]!r} was scored over {self._tokens[row]} and over {loss.tokens} tokens; "
                "the data changed between the two: sweep into a new area"
            )
        known = self._nll[row].get(mask, loss.nll)
        gap, mean = abs(known - loss.nll) / loss.tokens, abs(known) / loss.tokens
        if gap > CONFLICT_TOLERANCE * (1 + mean):
            raise IntegrityError(
                f"{self._outcome(row, mask)} was measured twice, as {known / loss.tokens:.4f} and "
                f"{loss.nll / loss.tokens:.4f} nats per token; the model changed between the two: sweep into a new area"
            )
        self._tokens[row] = loss.tokens
        self._nll[row][mask] = min(known, loss.nll)

    def update(self, other: OutcomeTable) -> None:
        """Add every measurement of ``other`` that is about one of this table's rows; its other rows are left out."""
        if other.domains != self.domains:
            raise IntegrityError(f"outcomes of the domains {other.domains} cannot be read as {self.domains}")
        for row, row_id in enumerate(self.row_ids):
            theirs = other._row_of.get(row_id)
            if theirs is None:
                continue
            if other.row_domains[theirs] != self.row_domains[row]:
                raise IntegrityError(f"row {row_id!r} is {self.row_domains[row]!r}, not {other.row_domains[theirs]!r}")
            for mask, nll in other._nll[theirs].items():
                self.record(row, mask, RowLoss(nll, other._tokens[theirs]))

    def losses(self, row: int) -> dict[int, float]:
        """Mean loss of one row under each combination measured, by mask, ascending."""
        return {mask: nll / self._tokens[row] for mask, nll in sorted(self._nll[row].items())}

    def loss_BC(self, masks: Sequence[int]) -> np.ndarray:
        """Mean losses of all rows under ``masks``, float64 (B, C), NaN where not measured."""
        loss_BC = np.full((len(self.row_ids), len(masks)), np.nan)
        for row, (nll, tokens) in enumerate(zip(self._nll, self._tokens, strict=True)):
            for column, mask in enumerate(masks):
                if mask in nll:
                    loss_BC[row, column] = nll[mask] / tokens
        return loss_BC

    def masks(self) -> list[int]:
        """Every combination measured for at least one row, ascending."""
        return sorted(set().union(*self._nll))

    def missing(self, masks: Iterable[int]) -> list[tuple[int, int]]:
        """(row, mask) pairs among ``masks`` that are not measured, row by row."""
        masks = list(masks)
        return [(row, mask) for row, nll in enumerate(self._nll) for mask in masks if mask not in nll]

    def subset(self, rows: Sequence[int]) -> Self:
        """The same table over these row indices, in this order."""
        part = type(self)([self.row_ids[r] for r in rows], [self.row_domains[r] for r in rows], self.domains)
        part.update(self)
        return part

    def to_arrow(self) -> pa.Table:
        """Long format (``SCHEMA``), sorted by row id and mask: equal contents give equal tables."""
        records = [
            (row_id, self.row_domains[row], mask, self._nll[row][mask], self._tokens[row])
            for row_id, row in sorted(self._row_of.items())
            for mask in sorted(self._nll[row])
        ]
        columns = zip(*records, strict=True) if records else [()] * len(SCHEMA)
        arrays = [pa.array(list(column), type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata({"domains": json.dumps(self.domains)}))

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """The table that ``to_arrow`` wrote, or several of them concatenated; rows sorted by id.

        Raises IntegrityError when columns or the domain order are absent, or duplicates disagree.
        """
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        if b"domains" not in metadata or not set(SCHEMA.names) <= set(table.column_names):
            raise IntegrityError(
                f"outcomes need the columns {SCHEMA.names} and the domain order in their schema metadata; "
                f"got the columns {table.column_names} and the metadata {sorted(metadata)}"
            )
        rows = table.select(SCHEMA.names).to_pylist()
        domain_of = {row["row_id"]: row["domain"] for row in rows}
        row_ids = sorted(domain_of)
        outcomes = cls(row_ids, [domain_of[row_id] for row_id in row_ids], json.loads(metadata[b"domains"]))
        for row in rows:
            outcomes.record(outcomes._row_of[row["row_id"]], row["mask"], RowLoss(row["nll"], row["tokens"]))
        return outcomes

    def _outcome(self, row: int, mask: int) -> str:
        return f"row {self.row_ids[row]!r} under {list(mask_names(mask, self.domains)) or 'the base alone'}"
