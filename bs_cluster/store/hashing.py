"""SHA-256 of files and of folders of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, Protocol

from bs_cluster.errors import NotInStoreError
from bs_cluster.records import FileEntry

CHUNK_BYTES = 8 * 2**20


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


def copy_hashed(source: BinaryIO, sink: Sink) -> tuple[str, int]:
    """Copy ``source`` to ``sink`` in one pass; returns the SHA-256 (hex) and the size in bytes of what went over."""
    hasher, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        hasher.update(chunk)
        sink.write(chunk)
        size += len(chunk)
    return hasher.hexdigest(), size


def file_entry(path: Path, name: str) -> FileEntry:
    """Digest and size of the file at ``path``, to be known as ``name`` in a manifest."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(name=name, sha256=digest, size=stream.tell())


def stage_entries(directory: Path) -> tuple[FileEntry, ...]:
    """Every file under ``directory`` as manifest entries, sorted by name; names are relative, with ``/``."""
    if not directory.is_dir():
        raise NotInStoreError(f"the staged folder {directory} does not exist; stage the files before committing them")
    files = sorted((path.relative_to(directory).as_posix(), path) for path in directory.rglob("*") if path.is_file())
    return tuple(file_entry(path, name) for name, path in files)
