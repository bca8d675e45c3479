"""Whole files or none: the few operations the store is built from, on a local disk and on any pyarrow filesystem.

Both classes keep names relative to one root and write under ``tmp/`` first, so that a crash leaves at most a stray
temporary file there, never half of a file under its final name.
"""

from __future__ import annotations

import io
import os
import time
import uuid
from pathlib import Path
from typing import BinaryIO, Protocol

from pyarrow import fs

from bs_cluster.errors import IntegrityError, NotInStoreError, StoreError
from bs_cluster.store.hashing import copy_hashed

TEMPORARY = "tmp"


class Files(Protocol):
    """Files under one root, by relative name with ``/``."""

    def size(self, name: str) -> int | None:
        """Size in bytes, or None when there is no such file."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open for reading. Raises ``NotInStoreError``."""
        ...

    def names(self, folder: str) -> list[str]:
        """Every file under ``folder``, recursively, sorted. Empty when the folder does not exist."""
        ...

    def write(self, name: str, source: BinaryIO, sha256: str | None = None) -> None:
        """Create or replace ``name`` with all of ``source``, atomically and durably. With ``sha256``, bytes that
        do not hash to it are thrown away and raise ``IntegrityError``."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Create ``name`` with ``data``, whole or not at all. False, and nothing done, when it already exists."""
        ...

    def delete(self, name: str) -> None: ...

    def age_seconds(self, name: str) -> float: ...


class LocalFiles:
    """A folder on a local or shared POSIX disk. Content is fsynced before its name appears, and the name after."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name

    def size(self, name: str) -> int | None:
        path = self.path(name)
        return path.stat().st_size if path.is_file() else None

    def open(self, name: str) -> BinaryIO:
        try:
            return self.path(name).open("rb")
        except FileNotFoundError as error:
            raise NotInStoreError(f"{self.path(name)} does not exist") from error

    def names(self, folder: str) -> list[str]:
        found = (path for path in self.path(folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def write(self, name: str, source: BinaryIO, sha256: str | None = None) -> None:
        target = self.path(name)
        temporary = self._write_temporary(source, sha256)
        make_folder(target.parent)
        os.replace(temporary, target)
        sync_folder(target.parent)

    def create(self, name: str, data: bytes) -> bool:
        target = self.path(name)
        temporary = self._write_temporary(io.BytesIO(data), None)
        make_folder(target.parent)
        try:
            # Unlike a rename, a hard link fails when the name is taken; unlike O_EXCL, the file is whole at once.
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            raise StoreError(
                f"{target.parent} cannot hold hard links ({error.strerror}), which commits need; "
                "use a POSIX volume or a pyarrow filesystem URI (s3://, gs://) as store.uri"
            ) from error
        finally:
            temporary.unlink()
        sync_folder(target.parent)
        return True

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def age_seconds(self, name: str) -> float:
        return time.time() - self.path(name).stat().st_mtime

    def _write_temporary(self, source: BinaryIO, sha256: str | None) -> Path:
        make_folder(self.path(TEMPORARY))
        temporary = self.path(TEMPORARY) / uuid.uuid4().hex
        with temporary.open("xb") as sink:
            actual, _ = copy_hashed(source, sink)
            sink.flush()
            os.fsync(sink.fileno())
        if sha256 is not None and actual != sha256:
            temporary.unlink()
            raise _changed(sha256, actual)
        return temporary


class RemoteFiles:
    """A folder of any pyarrow filesystem. Object stores publish an object whole, and durability is theirs.

    They have no exclusive create that pyarrow exposes, so ``create`` checks and then writes: it relies on the
    coordinator being the campaign's single writer.
    """

    def __init__(self, filesystem: fs.FileSystem, root: str):
        self._fs = filesystem
        self.root = root.rstrip("/")

    def size(self, name: str) -> int | None:
        info = self._info(name)
        return info.size if info.type == fs.FileType.File else None

    def open(self, name: str) -> BinaryIO:
        try:
            return self._fs.open_input_stream(self._path(name))
        except FileNotFoundError as error:
            raise NotInStoreError(f"{self._path(name)} does not exist") from error

    def names(self, folder: str) -> list[str]:
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        found = (info.path for info in self._fs.get_file_info(selector) if info.type == fs.FileType.File)
        return sorted(path.lstrip("/").removeprefix(self.root.lstrip("/") + "/") for path in found)

    def write(self, name: str, source: BinaryIO, sha256: str | None = None) -> None:
        temporary = f"{TEMPORARY}/{uuid.uuid4().hex}"
        self._fs.create_dir(self._path(TEMPORARY), recursive=True)
        with self._fs.open_output_stream(self._path(temporary)) as sink:
            actual, size = copy_hashed(source, sink)
        if sha256 is not None and actual != sha256:
            self.delete(temporary)
            raise _changed(sha256, actual)
        if (arrived := self.size(temporary)) != size:
            raise IntegrityError(f"{self._path(temporary)}: {size} bytes were written, {arrived} arrived; run it again")
        self._fs.create_dir(self._path(name).rpartition("/")[0], recursive=True)
        self._fs.move(self._path(temporary), self._path(name))

    def create(self, name: str, data: bytes) -> bool:
        if self.size(name) is not None:
            return False
        self.write(name, io.BytesIO(data))
        return True

    def delete(self, name: str) -> None:
        self._fs.delete_file(self._path(name))

    def age_seconds(self, name: str) -> float:
        modified_ns = self._info(name).mtime_ns
        return 0.0 if modified_ns is None else time.time() - modified_ns / 1e9

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _info(self, name: str) -> fs.FileInfo:
        return self._fs.get_file_info([self._path(name)])[0]


def open_files(uri: str, folder: str) -> tuple[str, LocalFiles | RemoteFiles]:
    """The files under ``<uri>/<folder>``, and ``uri`` made absolute, so that it means the same on every worker."""
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        return str(path), LocalFiles(path / folder)
    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError, ImportError) as error:
        raise StoreError(f"store.uri {uri!r} is neither a folder nor a pyarrow filesystem URI ({error})") from error
    if isinstance(filesystem, fs.LocalFileSystem):
        return uri, LocalFiles(Path(root) / folder)
    return uri, RemoteFiles(filesystem, f"{root.rstrip('/')}/{folder}")


def make_folder(folder: Path) -> None:
    """``mkdir -p`` whose every new entry is durable."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename or link survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(expected: str, actual: str) -> IntegrityError:
    return IntegrityError(f"sha256 {expected} was announced, the bytes have {actual}; they changed while being copied")
