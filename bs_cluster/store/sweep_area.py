"""Where a sweep keeps the outcomes it has measured so far: whole Parquet parts, readable after any crash."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from bs_cluster.store.filesystem import Files


class SweepArea:
    """One sweep's scratch folder. A part appears whole or not at all; writing a name again replaces it."""

    def __init__(self, files: Files, folder: str):
        self._files = files
        self.folder = folder

    def write_part(self, name: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        buffer.seek(0)
        self._files.write(f"{self.folder}/part-{name}.parquet", buffer)

    def parts(self) -> list[str]:
        """Names of the parts written so far, sorted."""
        stems = (name.removeprefix(f"{self.folder}/part-") for name in self._files.stamps(self.folder))
        return [stem.removesuffix(".parquet") for stem in stems]

    def read(self) -> pa.Table | None:
        """All parts in the order of their names as one table, or None when there is none yet."""
        names = self._files.stamps(self.folder)
        tables = [pq.read_table(io.BytesIO(self._files.read(name))) for name in names]
        return pa.concat_tables(tables) if tables else None
