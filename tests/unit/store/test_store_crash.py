"""A commit that is killed at any point leaves no ref or a whole one, and running it again finishes the same history."""

import os
import signal
from pathlib import Path

import pytest
from tiny_history import stack_manifest, write_files

from bs_cluster.records import StackManifest
from bs_cluster.store import Store

KILLED = 77
DURABLE_CALLS = ("replace", "link", "fsync", "mkdir", "unlink")


def commit_in_child(store: Store, manifest: StackManifest, staged: Path, die_at: int) -> int:
    """Commit in a forked child that dies without any clean-up before its ``die_at``-th durable call. Exit status."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        signal.alarm(30)
        calls = 0

        def dying(call):
            def counted(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == die_at:
                    os._exit(KILLED)
                return call(*args, **kwargs)

            return counted

        for name in DURABLE_CALLS:
            setattr(os, name, dying(getattr(os, name)))
        store.commit_stack(manifest, staged)
        os._exit(0)
    finally:
        os._exit(1)


def history(store: Store) -> dict[str, bytes]:
    """Every file that counts, with its bytes: refs and blobs, not what was left half written."""
    root = Path(store.uri) / store.campaign
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in ("refs", "blobs", "history")
        for path in sorted((root / part).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def commit(tmp_path_factory) -> tuple[Path, StackManifest, dict[str, bytes]]:
    """A staged stack, its manifest, and the history that an uninterrupted commit of it makes."""
    root = tmp_path_factory.mktemp("crash")
    staged = write_files(root / "staged")
    store = Store(str(root / "whole"), "demo")
    manifest = stack_manifest(store, staged, "chat", 1)
    store.commit_stack(manifest, staged)
    return staged, manifest, history(store)


def test_killed_anywhere_a_rerun_finishes_the_same_history(commit, tmp_path):
    staged, manifest, whole = commit
    kills, kills_after_commit = 0, 0
    while True:
        store = Store(str(tmp_path / str(kills)), "demo")
        if (status := commit_in_child(store, manifest, staged, die_at=kills + 1)) == 0:
            break
        assert status == KILLED
        kills += 1
        left = history(store)
        assert left.items() <= whole.items()  # nothing half written under a final name
        if refs := store.stacks():  # a ref that exists leads to everything
            kills_after_commit += 1
            assert [found for _, found in refs] == [manifest]
            assert set(whole) - set(left) <= {"history/1.json"}  # which the next writer adds
        ref = store.commit_stack(manifest, staged)
        assert (ref.manifest, history(store)) == (manifest.digest(), whole)
        store.collect_temporary(older_than_s=-1)
        assert store._files.stamps("tmp") == {}
    assert kills > 20  # three files and a manifest: temporary, rename, folder; then the ref
    assert kills_after_commit > 0


def test_a_rerun_may_be_killed_as_well(commit, tmp_path):
    staged, manifest, whole = commit
    store = Store(str(tmp_path / "store"), "demo")
    for die_at in range(5, 100, 5):
        if commit_in_child(store, manifest, staged, die_at) == 0:
            break
    assert [ref.manifest for ref, _ in store.stacks()] == [manifest.digest()]
    assert history(store) == whole
