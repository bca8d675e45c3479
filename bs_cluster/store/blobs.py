"""Content-addressed bytes: a blob's name is its SHA-256, so it is written once and can always be checked."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Callable, Hashable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from bs_cluster.errors import IntegrityError, NotInStoreError, StoreError
from bs_cluster.records import FileEntry, sha256_hex
from bs_cluster.store.filesystem import LocalFiles
from bs_cluster.store.hashing import file_entry
from bs_cluster.store.remote import RemoteFiles

log = logging.getLogger(__name__)

BLOBS = "blobs/sha256"
DIGEST = re.compile(r"[0-9a-f]{64}")


def blob_name(digest: str) -> str:
    """Raises ``IntegrityError`` for what is no SHA-256, before it becomes a path."""
    if not (isinstance(digest, str) and DIGEST.fullmatch(digest)):
        raise IntegrityError(f"{digest!r} is no SHA-256 of 64 hex digits; what names it is damaged: run a repair")
    return f"{BLOBS}/{digest[:2]}/{digest}"


class Blobs:
    """The blobs of one campaign. ``cache`` keeps local copies of a remote store's large blobs, by digest.

    What is read is hashed while it is read, each time. Only a put trusts an earlier look, for as long as inode, size
    and time stamp stay the same and in this process only.
    """

    def __init__(self, files: LocalFiles | RemoteFiles, cache: Path):
        self._files = files
        self._cache = None if isinstance(files, LocalFiles) else LocalFiles(cache)
        self._sound: dict[str, Hashable] = {}

    def put_bytes(self, name: str, data: bytes) -> FileEntry:
        entry = FileEntry(name=name, sha256=sha256_hex(data), size=len(data))
        self._put(entry, lambda: io.BytesIO(data))
        return entry

    def put_file(self, path: Path, name: str) -> FileEntry:
        entry = file_entry(path, name)
        self.put_entry(path, entry)
        return entry

    def put_entry(self, path: Path, entry: FileEntry) -> None:
        """Store the file at ``path``, known to be ``entry``. Raises ``IntegrityError`` when it is not, any more."""
        self._put(entry, lambda: path.open("rb"))

    def _put(self, entry: FileEntry, source: Callable[[], BinaryIO]) -> None:
        """Whatever stands under the name afterwards has these bytes, and counts as written now: a blob that a
        commit under way has put is never old enough to be collected."""
        name = blob_name(entry.sha256)
        if isinstance(self._files, LocalFiles) and self._is_sound(self._files, entry):
            self._files.renew(name)
        else:
            with source() as stream:
                self._files.write(name, stream, entry.sha256)
        if isinstance(self._files, LocalFiles):
            self._sound[entry.sha256] = self._files.stamp(name)

    def _is_sound(self, files: LocalFiles, entry: FileEntry) -> bool:
        try:
            stamp = files.stamp(blob_name(entry.sha256))
            return self._sound.get(entry.sha256) == stamp or self.check(entry.sha256) == entry.size
        except (NotInStoreError, IntegrityError):
            return False

    def exists(self, digest: str) -> bool:
        return self.size(digest) is not None

    def size(self, digest: str) -> int | None:
        """In bytes; None where there is no such blob."""
        return self._files.size(blob_name(digest))

    def erase(self, digest: str) -> None:
        """Delete a blob here and in this machine's cache; one that is gone stays gone."""
        self._sound.pop(digest, None)
        for files in (self._files, self._cache):
            if files is not None and files.size(blob_name(digest)) is not None:
                files.delete(blob_name(digest))

    def require(self, entry: FileEntry, wanted_by: str) -> None:
        if self._files.size(blob_name(entry.sha256)) != entry.size:
            raise NotInStoreError(
                f"{wanted_by} names {entry.name} (sha256 {entry.sha256}, {entry.size} bytes), which the store does "
                "not hold; put_file it first"
            )

    def get_bytes(self, digest: str) -> bytes:
        data = self._files.read(blob_name(digest))
        if (actual := sha256_hex(data)) != digest:
            raise _rotten(digest, actual, len(data))
        return data

    def get_entry(self, entry: FileEntry) -> bytes:
        """The bytes of a large file of a manifest, through the cache where the store is remote."""
        if self._cache is not None:
            try:
                return Blobs(self._cache, self._cache.root).get_entry(entry)
            except StoreError:
                pass  # not there yet, or damaged: fetched anew
        held = self._files.size(blob_name(entry.sha256))
        if held is not None and held != entry.size:
            raise IntegrityError(
                f"{entry.name}: {entry.size} bytes in the manifest, blob {entry.sha256} has {held}; {_WAY_OUT}"
            )
        data = self.get_bytes(entry.sha256)
        if self._cache is not None:
            try:
                self._cache.write(blob_name(entry.sha256), io.BytesIO(data))
            except StoreError as error:
                log.warning("%s is not cached: %s", entry.name, error)
        return data

    def check(self, digest: str) -> int:
        """Re-hash a blob; returns its size in bytes. Raises ``IntegrityError`` or ``NotInStoreError``."""
        hasher, size = hashlib.sha256(), 0
        for chunk in self._files.chunks(blob_name(digest)):
            hasher.update(chunk)
            size += len(chunk)
        if hasher.hexdigest() != digest:
            raise _rotten(digest, hasher.hexdigest(), size)
        return size


def safe_name(name: str) -> PurePosixPath:
    """``name`` as a path that stays inside the folder it is joined to. Raises ``IntegrityError``."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise IntegrityError(f"file name {name!r} leads out of its folder; names in a manifest are relative")
    return path


_WAY_OUT = "putting the same bytes again heals it, or repair the store from a copy"


def _rotten(expected: str, actual: str, size: int) -> IntegrityError:
    return IntegrityError(
        f"blob {expected} is damaged: sha256 {expected} expected, the {size} stored bytes have {actual}; {_WAY_OUT}"
    )
