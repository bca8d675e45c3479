"""Where a round that is under way keeps its state: whole files by name, beside the history, until the round ends."""

from __future__ import annotations

import io

from bs_cluster.store.filesystem import Files


class RoundArea:
    """One round's scratch folder. A file appears whole or not at all; writing a name again replaces it."""

    def __init__(self, files: Files, folder: str):
        self._files = files
        self.folder = folder

    def write(self, name: str, data: bytes) -> None:
        self._files.write(f"{self.folder}/{name}", io.BytesIO(data))

    def read(self, name: str) -> bytes:
        """Raises ``NotInStoreError``."""
        return self._files.read(f"{self.folder}/{name}")

    def names(self) -> list[str]:
        """Names of the files there, sorted."""
        return [name.removeprefix(f"{self.folder}/") for name in self._files.stamps(self.folder)]

    def delete(self, name: str) -> None:
        self._files.delete(f"{self.folder}/{name}")

    def clear(self) -> None:
        for name in self.names():
            self.delete(name)
