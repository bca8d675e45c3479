"""Where a sweep keeps the outcomes it has measured so far: whole Parquet parts, readable after any crash."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bs_cluster.failpoints import failpoint
from bs_cluster.store.filesystem import Files


class Part(NamedTuple):
    """A file of outcomes, all of rows from ``first`` to ``last`` in the sweep's order."""

    first: int
    last: int
    file: str


class SweepArea:
    """One sweep's scratch folder. A part appears whole or not at all, and its name says which rows it is about."""

    def __init__(self, files: Files, folder: str):
        self._files = files
        self.folder = folder

    def write_part(self, first: int, last: int, table: pa.Table) -> None:
        """Outcomes of rows from ``first`` to ``last``, named by their bytes: the same again replaces itself."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()[:20]
        buffer.seek(0)
        failpoint("sweep.parquet")
        self._files.write(f"{self.folder}/part-{first:010}-{last:010}-{digest}.parquet", buffer)

    def parts(self) -> list[Part]:
        """What was written so far, by name."""
        found = []
        for file in self._files.stamps(self.folder):
            first, last, _ = file.removeprefix(f"{self.folder}/part-").split("-")
            found.append(Part(int(first), int(last), file))
        return found

    def read(self, parts: Iterable[Part]) -> pa.Table | None:
        """These parts as one table, in the order given; None for none."""
        tables = [pq.read_table(io.BytesIO(self._files.read(part.file))) for part in parts]
        return pa.concat_tables(tables) if tables else None
