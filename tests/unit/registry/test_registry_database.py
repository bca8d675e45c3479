"""MLflow's sqlite file comes into being whole, or not at all: killed at any instant, or begun twice at once."""

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from multiprocessing import get_context

import pytest
from mlflow import MlflowClient

from bs_cluster.errors import RegistryError
from bs_cluster.registry import Registry, database
from bs_cluster.registry.database import ensure_database

# A child has MLflow imported already: what is timed, and killed, is the building alone.
FORK = get_context("fork")
BUILD_TIMEOUT_S = 120


def opens(path) -> bool:
    uri = f"sqlite:///{path}"
    return [experiment.name for experiment in MlflowClient(uri, uri).search_experiments()] == ["Default"]


def build(path) -> None:
    ensure_database(path, lambda text: None)


def child(path):
    process = FORK.Process(target=build, args=(path,))
    process.start()
    return process


def age(path) -> None:
    """What nobody touched for a while is nobody's work in progress."""
    os.utime(path, (time.time() - 60, time.time() - 60))


def half_built(path) -> None:
    """As a process of MLflow killed in its own migration leaves a file: some tables, no version that is known."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name VARCHAR(256))")
        connection.execute("CREATE TABLE _alembic_tmp_runs (run_uuid VARCHAR(32))")
        connection.commit()
    age(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mlflow.db"


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_killed_while_it_is_built_the_next_start_has_it_whole(path, building_s, share):
    process = child(path)
    process.join(share * building_s)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not path.exists() or opens(path)
    said = []
    ensure_database(path, said.append)
    assert opens(path)
    assert said == []
    assert {entry.name for entry in path.parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


def test_two_starts_at_once_share_one(path):
    starts = [child(path) for _ in range(2)]
    for process in starts:
        process.join(BUILD_TIMEOUT_S)
    assert [process.exitcode for process in starts] == [0, 0]
    assert opens(path)


@pytest.mark.parametrize("ruin", ["half built", "no sqlite", "torn"])
def test_a_ruined_one_is_moved_aside_told_and_filled_from_the_store(path, migrated, store, capsys, ruin):
    if ruin == "half built":
        half_built(path)
    elif ruin == "no sqlite":
        path.write_bytes(b"not a database, " * 1000)
    else:
        shutil.copy(migrated, path)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    before = path.read_bytes()
    log = path.with_name("mlflow.db-wal")
    log.write_bytes(b"what was being written")
    report = Registry(f"sqlite:///{path}", "demo", "brainstacks").sync(store)
    assert len(report.stacks) == 3
    kept, *_ = sorted(path.parent.glob("mlflow.db.ruined-*"))
    assert kept.read_bytes() == before
    assert not log.exists()  # it would be replayed into the new file
    assert kept.name in capsys.readouterr().out


def test_another_mlflows_database_with_runs_is_refused_and_untouched(path, migrated):
    shutil.copy(migrated, path)
    uri = f"sqlite:///{path}"
    MlflowClient(uri, uri).create_run("0")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        connection.commit()
    age(path)
    before = path.read_bytes()
    with pytest.raises(RegistryError, match="mlflow db upgrade"):
        build(path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("mlflow.db.*"))


def test_what_somebody_is_just_building_is_waited_for(path, migrated, monkeypatch):
    """`mlflow server` on a new database builds under its final name and takes no lock of ours."""
    monkeypatch.setattr(database, "SETTLED_S", 30.0)
    half_built(path)
    os.utime(path)
    waiting = child(path)
    waiting.join(0.5)
    assert waiting.is_alive()
    path.write_bytes(migrated.read_bytes())
    waiting.join(BUILD_TIMEOUT_S)
    assert waiting.exitcode == 0
    assert not list(path.parent.glob("mlflow.db.*"))
