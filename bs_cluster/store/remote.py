"""Files in an object store, through obstore: whole objects, and a create that exactly one of many writers wins."""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from bs_cluster.errors import IntegrityError, NotInStoreError, StoreError
from bs_cluster.store.filesystem import ASIDE, TEMPORARY, changed

PART_BYTES = 16 * 2**20  # of an upload; S3 takes 10,000 parts
RANGE_BYTES = 32 * 2**20  # of a download: one request each, so that a slow line meets no time limit
PROBERS = 8


class RemoteFiles:
    """The objects under one prefix. ``store`` is already at the prefix; ``where`` names it in messages.

    An object appears whole, and durability is the service's. Large ones go up in parts, straight to their name.
    """

    def __init__(self, store: ObjectStore, where: str):
        self._store = store
        self.where = where
        self._can_create = False

    def size(self, name: str) -> int | None:
        try:
            return self._head(name)["size"]
        except NotInStoreError:
            return None

    def read(self, name: str) -> bytes:
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        size, start = self._head(name)["size"], 0
        while start < size:
            with self._told(name, "read"):
                piece = obstore.get_range(self._store, name, start=start, length=min(RANGE_BYTES, size - start))
            yield bytes(piece)
            start += len(piece)

    def stamps(self, folder: str) -> dict[str, Hashable]:
        with self._told(folder, "listed"):
            found = [meta for page in obstore.list(self._store, folder or None, chunk_size=1000) for meta in page]
        return {meta["path"]: (meta["e_tag"], meta["size"]) for meta in sorted(found, key=lambda meta: meta["path"])}

    def write(self, name: str, source: BinaryIO, sha256: str | None = None) -> None:
        sent = _Sent(source, sha256)
        parts = iter(sent)
        first = next(parts, b"")
        with self._told(name, "written"):
            if sent.ended:
                obstore.put(self._store, name, first)
            else:
                obstore.put(self._store, name, _chain(first, parts), chunk_size=PART_BYTES)
        if (arrived := self.size(name)) != sent.size:
            raise IntegrityError(f"{self._at(name)}: {sent.size} bytes were sent, {arrived} arrived; run it again")

    def create(self, name: str, data: bytes) -> bool:
        if not self._can_create:
            self._probe()
        return self._create(name, data)

    def delete(self, name: str) -> None:
        with contextlib.suppress(NotInStoreError), self._told(name, "deleted"):
            obstore.delete(self._store, name)

    def set_aside(self, name: str) -> str:
        to = f"{ASIDE}/{uuid.uuid4().hex[:8]}/{name}"
        with self._told(name, "moved"):
            obstore.rename(self._store, name, to)
        return to

    def age_seconds(self, name: str) -> float:
        return time.time() - self._head(name)["last_modified"].timestamp()

    def _create(self, name: str, data: bytes) -> bool:
        with self._told(name, "created"):
            try:
                obstore.put(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def _probe(self) -> None:
        """Let several writers create one name at once. Raises ``StoreError`` unless exactly one of them wins."""
        name = f"{TEMPORARY}/probe-{uuid.uuid4().hex}"
        try:
            with ThreadPoolExecutor(PROBERS) as pool:
                won = sum(pool.map(lambda writer: self._create(name, b"%d" % writer), range(PROBERS)))
            won += self._create(name, b"late")
        finally:
            self.delete(name)
        if won != 1:
            raise StoreError(
                f"{self.where}: {won} of {PROBERS + 1} writers believed to have created one object; commits need a "
                "store that creates only what is absent (S3 If-None-Match, GCS generation match): use another service "
                "or a POSIX volume"
            )
        self._can_create = True

    def _head(self, name: str) -> obstore.ObjectMeta:
        with self._told(name, "read"):
            return obstore.head(self._store, name)

    def _at(self, name: str) -> str:
        return f"{self.where}/{name}"

    @contextlib.contextmanager
    def _told(self, name: str, done: str) -> Iterator[None]:
        """The client's errors in the store's words."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise NotInStoreError(f"{self._at(name)} does not exist") from error
        except (BaseError, OSError, ValueError) as error:
            reason = " ".join(str(error).split("Debug source")[0].split())[:300]
            raise StoreError(
                f"{self._at(name)} cannot be {done}: {reason}; look after the service and this user's right to it, "
                "then run the same command again"
            ) from error


class _Sent:
    """A source as parts. The last one is handed out only when all of them hash to what was announced, so that an
    upload of other bytes never completes."""

    def __init__(self, source: BinaryIO, sha256: str | None):
        self._source = source
        self._sha256 = sha256
        self.size = 0
        self.ended = False

    def __iter__(self) -> Iterator[bytes]:
        hasher, held = hashlib.sha256(), self._source.read(PART_BYTES)
        while held:
            hasher.update(held)
            self.size += len(held)
            following = self._source.read(PART_BYTES)
            if not following:
                break
            yield held
            held = following
        if self._sha256 is not None and hasher.hexdigest() != self._sha256:
            raise changed(self._sha256, hasher.hexdigest())
        self.ended = True
        yield held


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
