"""MLflow's sqlite file, whole before it has its name.

MLflow builds its schema by some sixty migrations in place. Killed on the way, or met by another that starts at the
same time, the file is left such that no MLflow opens it again. So it is built beside and renamed, one process at a
time; what an earlier, ruined start left under the name is moved aside, never deleted.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from alembic.util.exc import CommandError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.base_sql_model import Base
from mlflow.store.db.utils import _get_latest_schema_revision
from sqlalchemy.exc import SQLAlchemyError

from bs_cluster.errors import RegistryError, RegistryUnavailable

LOCK_TIMEOUT_S = 120.0
BUSY_TIMEOUT_S = 20.0
# An unfinished file that changed a moment ago may be another program's work, as `mlflow server` on a new database.
SETTLED_S = 10.0
JOURNALS = ("-journal", "-wal", "-shm")


def ensure_database(database: Path, say: Callable[[str], None]) -> None:
    """Returns once ``database`` has the whole schema of the installed MLflow; one that is whole is only looked at.

    A damaged file, or an unfinished one without a run in it, is moved aside to ``<name>.ruined-<time>`` and told with
    ``say``; the store has what it showed. One of an older MLflow is brought up on a copy, the old one kept beside.
    Raises RegistryError for another MLflow's file that holds runs and cannot be brought up, RegistryUnavailable when
    somebody else holds the file for long.
    """
    if _state(database) == "whole":
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with _locked(database):
        _wait_until_settled(database)
        found = _state(database)
        if found == "whole":
            return
        for left in database.parent.glob(f".{database.name}.building-*"):
            left.unlink()
        if found == "absent":
            ready = _built(database, None)
        elif found == "unfinished" and (copy := _brought_up(database)) is not None:
            ready = copy
            kept = _keep(database, "before")
            say(f"MLflow's database {database} was brought up to this MLflow; the old file is kept as {kept}")
        elif found == "unfinished" and _holds_runs(database):
            raise RegistryError(
                f"{database} is of another MLflow and cannot be brought up to this one; run "
                f"`mlflow db upgrade sqlite:///{database}` with the newer of the two, or set registry.tracking_uri"
            )
        else:
            ready = _built(database, None)
            kept = _keep(database, "ruined")
            say(f"MLflow's database {database} was ruined; it is kept as {kept} and built anew from the store")
        os.replace(ready, database)
        _sync(database.parent)


def _state(database: Path) -> str:
    """``absent``, ``damaged`` (no sane sqlite file), ``unfinished`` (not this MLflow's whole schema) or ``whole``."""
    if not database.exists() or database.stat().st_size == 0:
        return "absent"
    try:
        with _reading(database) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return "damaged"
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"alembic_version", *Base.metadata.tables} <= tables:
                return "unfinished"
            versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
            return "whole" if versions == [(_get_latest_schema_revision(),)] else "unfinished"
    except sqlite3.OperationalError as error:
        raise RegistryUnavailable(f"MLflow's database {database} cannot be read now ({error})") from error
    except sqlite3.DatabaseError:
        return "damaged"


def _holds_runs(database: Path) -> bool:
    with _reading(database) as connection:
        for table in ("runs", "registered_models"):
            with suppress(sqlite3.OperationalError):  # no such table
                if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
                    return True
    return False


def _brought_up(database: Path) -> Path | None:
    """A whole copy of an unfinished database beside it; None where MLflow cannot finish what was begun."""
    try:
        return _built(database, database)
    except RegistryError:
        return None


def _built(database: Path, origin: Path | None) -> Path:
    """A whole database under another name in the same folder, from ``origin`` or from nothing, on disk."""
    draft, ready = (database.with_name(f".{database.name}.building-{uuid.uuid4().hex}") for _ in range(2))
    try:
        if origin is not None:
            _copy(origin, draft)
        uri = f"sqlite:///{draft}"
        MlflowClient(uri, uri).search_experiments(max_results=1)
        if _state(draft) != "whole":
            raise RegistryError(f"MLflow did not finish its schema in {draft}")
        _copy(draft, ready)  # MLflow's own connections to the draft stay open as long as the process lives
        _sync(ready)
        return ready
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error) as error:
        raise RegistryError(f"MLflow cannot build its database beside {database}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _copy(origin: Path, copy: Path) -> None:
    with _reading(origin) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _keep(database: Path, why: str) -> Path:
    """Gives the file a second name and takes its journals away: they must not be replayed into its successor."""
    kept = database.with_name(f"{database.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}")
    os.link(database, kept)
    for journal in JOURNALS:
        with suppress(FileNotFoundError):
            os.rename(f"{database}{journal}", f"{kept}{journal}")
    return kept


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    """Writable, because a reader that is not could not roll a killed writer's journal back."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", BUSY_TIMEOUT_S, uri=True)) as connection:
        yield connection


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    """One process at a time; the lock ends with the process that holds it."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RegistryUnavailable(
                        f"another process has been building {database} for {LOCK_TIMEOUT_S:.0f} s"
                    ) from None
                time.sleep(0.1)
        yield


def _wait_until_settled(database: Path) -> None:
    while _state(database) == "unfinished" and time.time() - database.stat().st_mtime < SETTLED_S:
        time.sleep(0.2)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
