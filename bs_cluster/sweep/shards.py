"""A sweep's rows and outcomes, a shard of them in memory at a time.

Shards are consecutive rows in the caller's order, as many as have a bounded number of outcomes. What was measured lies
in the sweep's area; where one shard ends and the next begins decides nothing about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bs_cluster.config.schema import SweepSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.store import SweepArea
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.search import most_outcomes

# Some twelve bytes each in the table, and while a wave is planned and measured some two hundred.
SHARD_OUTCOMES = 1 << 19


@dataclass(frozen=True)
class Shard:
    """Rows from ``start`` on with their outcomes, of which ``held`` were read from the area."""

    start: int
    rows: Sequence[EncodedRow]
    table: OutcomeTable
    held: int

    @property
    def places(self) -> range:
        """Its rows among all."""
        return range(self.start, self.start + len(self.rows))


def read_shards(
    rows: Sequence[EncodedRow],
    domains: Sequence[str],
    settings: SweepSection,
    area: SweepArea,
    shard_outcomes: int = SHARD_OUTCOMES,
) -> Iterator[Shard]:
    """All ``rows`` in their order, with the outcomes that ``area`` has now."""
    size = max(1, shard_outcomes // most_outcomes(settings, len(domains)))
    parts = area.parts()
    for start in range(0, len(rows), size):
        own = [rows[place] for place in range(start, min(start + size, len(rows)))]
        table = OutcomeTable([row.id for row in own], [row.domain for row in own], domains)
        held = area.read(part for part in parts if part.first < start + size and part.last >= start)
        if held is not None:
            table.update(OutcomeTable.from_arrow(held))
        yield Shard(start, own, table, len(table))
