"""Whole files or none: the few operations that the store is built from, and what they are on a POSIX disk.

Names are relative to one root. Only regular files are opened: a link, a pipe or a device under a file's name is
damage. "There is none" and "it cannot be told" are different answers: the first is a value, the second an error.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import time
import uuid
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from bs_cluster.errors import IntegrityError, NotInStoreError, StoreError, way_out
from bs_cluster.failpoints import failpoint
from bs_cluster.store.hashing import CHUNK_BYTES, copy_hashed

TEMPORARY = "tmp"
ASIDE = "aside"  # where a repair moves what does not belong


class Files(Protocol):
    """Files under one root, by relative name with ``/``. Every method raises ``StoreError`` when it cannot tell."""

    def size(self, name: str) -> int | None:
        """Size in bytes, or None when there is no such file. Raises ``IntegrityError`` for what is no file."""
        ...

    def read(self, name: str) -> bytes:
        """The whole content. Raises ``NotInStoreError``."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content in pieces, for what is hashed or copied. Raises ``NotInStoreError``."""
        ...

    def stamps(self, folder: str) -> dict[str, Hashable]:
        """Every name under ``folder``, recursively and sorted, with a stamp that changes when the file does. Names
        of links, pipes and devices are among them. Empty when the folder does not exist."""
        ...

    def write(self, name: str, source: BinaryIO, sha256: str | None = None) -> None:
        """Create or replace ``name`` with all of ``source``, atomically and durably. With ``sha256``, bytes that
        do not hash to it are thrown away and raise ``IntegrityError``."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Create ``name`` with ``data``, whole or not at all. False, and nothing done, when it already exists. Of
        any number of processes that try at once, one gets True."""
        ...

    def delete(self, name: str) -> None: ...

    def set_aside(self, name: str) -> str:
        """Move ``name`` out of the way, whatever it is; returns where it lies now."""
        ...

    def age_seconds(self, name: str) -> float: ...


class LocalFiles:
    """A folder on a local or shared POSIX disk. Content is fsynced before its name appears, and the name after."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name

    def size(self, name: str) -> int | None:
        with _told(self.path(name), "read"):
            try:
                found = os.lstat(self.path(name))
            except FileNotFoundError:
                return None
        if not stat.S_ISREG(found.st_mode):
            raise _no_file(self.path(name))
        return found.st_size

    def read(self, name: str) -> bytes:
        with _told(self.path(name), "read"), self._open(name) as stream:
            return stream.read()

    def chunks(self, name: str) -> Iterator[bytes]:
        with _told(self.path(name), "read"), self._open(name) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def stamps(self, folder: str) -> dict[str, Hashable]:
        found: dict[str, Hashable] = {}
        pending = [folder]
        while pending:
            here = pending.pop()
            with _told(self.path(here), "listed"):
                try:
                    entries = list(os.scandir(self.path(here)))
                except FileNotFoundError:
                    continue
                for entry in entries:
                    name = f"{here}/{entry.name}".lstrip("/")
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(name)
                        continue
                    # A file that is gone by now was a temporary one, or is missed by who needs it.
                    with contextlib.suppress(NotInStoreError):
                        found[name] = self.stamp(name)
        return dict(sorted(found.items()))

    def write(self, name: str, source: BinaryIO, sha256: str | None = None) -> None:
        target = self.path(name)
        with _told(target, "written"):
            temporary = self._write_temporary(source, sha256)
            try:
                make_folder(target.parent)
                failpoint("store.rename")
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)

    def create(self, name: str, data: bytes) -> bool:
        target = self.path(name)
        with _told(target, "created"):
            temporary = self._write_temporary(io.BytesIO(data), None)
            try:
                make_folder(target.parent)
                failpoint("store.link")
                # Unlike a rename, a hard link fails when the name is taken; unlike O_EXCL, the file is whole at once.
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                raise StoreError(
                    f"{target.parent} cannot hold hard links ({error.strerror}), which commits need; "
                    "use a POSIX volume or an object store (s3://, gs://) as store.uri"
                ) from error
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(target.parent)
        return True

    def delete(self, name: str) -> None:
        with _told(self.path(name), "deleted"):
            self.path(name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> str:
        to = f"{ASIDE}/{uuid.uuid4().hex[:8]}/{name}"
        with _told(self.path(name), "moved"):
            make_folder(self.path(to).parent)
            os.rename(self.path(name), self.path(to))
            sync_folder(self.path(name).parent)
        return to

    def age_seconds(self, name: str) -> float:
        with _told(self.path(name), "read"):
            return time.time() - os.lstat(self.path(name)).st_mtime

    def stamp(self, name: str) -> Hashable:
        """Inode, size and time of change. Raises ``NotInStoreError``."""
        with _told(self.path(name), "read"):
            status = os.lstat(self.path(name))
        return status.st_ino, status.st_size, status.st_mtime_ns

    def renew(self, name: str) -> None:
        """Make the file count as written now."""
        with _told(self.path(name), "touched"):
            os.utime(self.path(name), follow_symlinks=False)

    def _open(self, name: str) -> BinaryIO:
        """Neither follows a link nor waits for a pipe's other end."""
        try:
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise _no_file(self.path(name)) from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _no_file(self.path(name))
        return os.fdopen(descriptor, "rb")

    def _write_temporary(self, source: BinaryIO, sha256: str | None) -> Path:
        make_folder(self.path(TEMPORARY))
        temporary = self.path(TEMPORARY) / uuid.uuid4().hex
        failpoint("store.stage")
        try:
            with temporary.open("xb") as sink:
                actual, _ = copy_hashed(source, sink)
                failpoint("store.write")
                sink.flush()
                failpoint("store.fsync")
                os.fsync(sink.fileno())
            if sha256 is not None and actual != sha256:
                raise changed(sha256, actual)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


def make_folder(folder: Path) -> None:
    """``mkdir -p`` whose every new entry is durable."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename or link survives a power cut only after this."""
    failpoint("store.folder")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def changed(expected: str, actual: str) -> IntegrityError:
    return IntegrityError(f"sha256 {expected} was announced, the bytes have {actual}; they changed while being copied")


@contextlib.contextmanager
def _told(path: Path, done: str) -> Iterator[None]:
    """Operating system errors in the store's words."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise NotInStoreError(f"{path} does not exist") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be {done} ({error.strerror}); {way_out(error)}") from error


def _no_file(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} is no regular file (a link, pipe, device or folder); move it away, then repair")
