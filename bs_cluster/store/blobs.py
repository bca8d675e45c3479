"""Content-addressed bytes: a blob's name is its SHA-256, so it is written once and can always be checked."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import uuid
from pathlib import Path, PurePosixPath

from bs_cluster.errors import IntegrityError, NotInStoreError
from bs_cluster.records import FileEntry, StackManifest, sha256_hex
from bs_cluster.store.filesystem import TEMPORARY, Files, LocalFiles, RemoteFiles, make_folder
from bs_cluster.store.hashing import CHUNK_BYTES, file_entry

VIEWS = "views"


def blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest[:2]}/{digest}"


class Blobs:
    """The blobs of one campaign. ``cache`` is where a remote store's blobs become local files, by digest."""

    def __init__(self, files: LocalFiles | RemoteFiles, cache: Path):
        self._files = files
        self._cached = LocalFiles(files.root if isinstance(files, LocalFiles) else cache)

    def put_bytes(self, name: str, data: bytes) -> FileEntry:
        entry = FileEntry(name=name, sha256=sha256_hex(data), size=len(data))
        if not self.holds(entry):
            self._files.write(blob_name(entry.sha256), io.BytesIO(data), entry.sha256)
        return entry

    def put_file(self, path: Path, name: str) -> FileEntry:
        entry = file_entry(path, name)
        self.put_entry(path, entry)
        return entry

    def put_entry(self, path: Path, entry: FileEntry) -> None:
        """Store the file at ``path``, known to be ``entry``. Raises ``IntegrityError`` when it is not, any more."""
        if not self.holds(entry):
            with path.open("rb") as source:
                self._files.write(blob_name(entry.sha256), source, entry.sha256)

    def holds(self, entry: FileEntry) -> bool:
        """Whether the blob is there at its full size. Names appear after content, so only rot can make it wrong."""
        return self._files.size(blob_name(entry.sha256)) == entry.size

    def exists(self, digest: str) -> bool:
        return self._files.size(blob_name(digest)) is not None

    def require(self, entry: FileEntry, wanted_by: str) -> None:
        if not self.holds(entry):
            raise NotInStoreError(
                f"{wanted_by} names {entry.name} (sha256 {entry.sha256}, {entry.size} bytes), which the store does "
                "not hold; put_file it first"
            )

    def get_bytes(self, digest: str) -> bytes:
        with self._files.open(blob_name(digest)) as stream:
            data = stream.read()
        if (actual := sha256_hex(data)) != digest:
            raise _rotten(digest, actual, len(data))
        return data

    def check(self, digest: str) -> int:
        """Re-hash a blob; returns its size in bytes. Raises ``IntegrityError`` or ``NotInStoreError``."""
        return _check(self._files, digest)

    def local_file(self, entry: FileEntry) -> Path:
        name = blob_name(entry.sha256)
        if self._cached.size(name) != entry.size:
            if isinstance(self._files, LocalFiles):
                self.check(entry.sha256)  # raises: the blob is missing or damaged
            with self._files.open(name) as source:
                self._cached.write(name, source, entry.sha256)
        return self._cached.path(name)

    def materialize(self, manifest: StackManifest) -> Path:
        folder = self._cached.path(f"{VIEWS}/{manifest.digest()}")
        if folder.is_dir():
            return folder
        building = self._cached.path(f"{TEMPORARY}/{uuid.uuid4().hex}")
        for entry in manifest.files:
            blob = self.local_file(entry)
            _check(self._cached, entry.sha256)
            target = building / safe_name(entry.name)
            make_folder(target.parent)
            os.link(blob, target)
        make_folder(folder.parent)
        try:
            building.rename(folder)
        except OSError:
            # Another process built the same view first: by digest, so equal to ours.
            shutil.rmtree(building)
            if not folder.is_dir():
                raise
        return folder


def safe_name(name: str) -> PurePosixPath:
    """``name`` as a path that stays inside the folder it is joined to. Raises ``IntegrityError``."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise IntegrityError(f"file name {name!r} leads out of its folder; names in a manifest are relative")
    return path


def _check(files: Files, digest: str) -> int:
    hasher, size = hashlib.sha256(), 0
    with files.open(blob_name(digest)) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
            size += len(chunk)
    if hasher.hexdigest() != digest:
        raise _rotten(digest, hasher.hexdigest(), size)
    return size


def _rotten(expected: str, actual: str, size: int) -> IntegrityError:
    return IntegrityError(
        f"blob {expected} is damaged: sha256 {expected} expected, the {size} stored bytes have {actual}; "
        f"delete {blob_name(expected)} and restore it from a copy, or commit its stack again"
    )
