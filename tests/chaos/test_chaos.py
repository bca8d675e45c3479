"""A few trials of each kind that needs no cluster, by the command that runs them all (``make chaos``); and that it
finds what it looks for.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_history import bundle_manifest, commit_round, domain_record

from bs_cluster.failpoints import FAILPOINTS
from bs_cluster.registry import Registry
from bs_cluster.store import Store
from chaos.page import page
from chaos.record import Results
from chaos.remains import compare, remains
from chaos.trials import KINDS, TIMES, trials_at, trials_of_processes

ROOT = Path(__file__).parents[2]
COMMITS = [
    "commit: store.link=kill@1",
    "commit: store.history=kill@1",
    "commit: store.fsync=enospc@1",
    "commit: registry.register=kill@1",
    "commit: registry.mirror=enospc@1",
]
ROUNDS = ["round: training.all_reduce=kill@1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names"),
    [("commit", COMMITS), pytest.param("round", ROUNDS, marks=pytest.mark.distributed)],
)
def test_struck_once_the_same_command_ends_with_the_same_history(tmp_path, kind, names):
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--results", str(tmp_path / "results"), "--kinds", kind, "--only", *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = Results(tmp_path / "results")
    assert sorted(trial.name for trial in results.of) == sorted(names)
    assert all(result.struck and result.again == "done" for result in results.of.values())
    assert f"**{len(names)} trials: 0 lost, 0 doubled, 0 torn" in page(results, [])


def test_each_failpoint_is_of_some_kind_of_trial():
    results = Results(ROOT / "tests/chaos/results.jsonl")
    planned = {trial.place for kind in TIMES for trial in trials_at(kind, results.passes.get(kind, {}), 0)}
    assert planned >= set(FAILPOINTS)
    assert {trial.kind for trial in trials_of_processes(1)} | set(TIMES) == set(KINDS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    store = Store(str(folder), "tiny")
    store.pin_identity({"campaign": "tiny"})
    for number in (1, 2):
        commit_round(store, folder / "staged", "aa", number)
    store.close_domain(domain_record(store, "aa"))
    store.commit_bundle(bundle_manifest(store))
    Registry(f"sqlite:///{folder}/mlflow.db", "tiny", "brainstacks").sync(store)
    return folder


def lose(root: Path, _: Path) -> None:
    (root / "refs/bundles/1.json").unlink()
    (root / "history/5.json").unlink()


def tear(root: Path, _: Path) -> None:
    blob = next(path for path in sorted((root / "blobs").rglob("*")) if path.is_file())
    blob.write_bytes(blob.read_bytes()[:-1])


def leave(root: Path, _: Path) -> None:
    (root / "report/.staging-of-nobody").mkdir(parents=True)


def double(_: Path, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(
            "INSERT INTO metrics SELECT key, value + 1, timestamp + 1, run_uuid, step, is_nan FROM metrics"
        )


def change(root: Path, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE runs SET status = 'RUNNING'")


@pytest.mark.parametrize(
    ("harm", "kind", "told"),
    [
        (lose, "lost", "refs/bundles/1.json"),
        (tear, "torn", "sha256"),
        (leave, "torn", "left over: report/.staging-of-nobody"),
        (double, "doubled", "MLflow: point aa_r1 loss 0, 1 more"),
        (change, "differs", "MLflow lacks run aa_r1 FINISHED"),
    ],
)
def test_what_is_wrong_is_found(whole, tmp_path, harm, kind, told):
    shutil.copytree(whole, tmp_path / "harmed")
    harm(tmp_path / "harmed/tiny", tmp_path / "harmed/mlflow.db")
    control, harmed = (
        remains(Store(str(folder), "tiny"), folder / "mlflow.db") for folder in (whole, tmp_path / "harmed")
    )
    assert compare(control, control).none
    assert any(told in one for one in getattr(compare(harmed, control), kind))
