"""A whole campaign whose store is a bucket of a real S3 server, killed on its way: the history of one on a disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import job
import objects
import pytest
from campaigns import DOMAINS

from bs_cluster.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.cluster]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The store, what the first job left when it was killed, and what the second one said."""

    store: Store
    before: dict[str, str]
    done: job.Done


def committed(store: Store) -> dict[str, str]:
    return {ref.stack.name: ref.manifest for ref, _ in store.stacks()}


@pytest.fixture(scope="module")
def bucket(tiny_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    with objects.s3_server() as server:
        uri = objects.uri_of(server, "stacks")
        settings = tiny_settings(Path("unused"))
        settings["store"] = {"uri": uri}
        settings["registry"] = {"tracking_uri": f"sqlite:///{folder}/mlflow.db"}
        config, store = job.write_config(folder / "tiny.yaml", settings), Store(uri, "tiny")
        first = job.Running(config, folder / "first.log")
        try:
            first.wait_until("commit of aa_r1", lambda: "aa_r1" in committed(store))
        finally:
            first.kill()
        before = committed(store)
        yield Bucket(store, before, job.run(config))


def test_the_same_command_finishes_what_was_begun(bucket):
    assert bucket.done.code == 0, f"{bucket.done.out}\n{bucket.done.err}"
    assert bucket.before
    assert "aa_r1          training begins" not in bucket.done.out
    assert bucket.before.items() <= committed(bucket.store).items()


def test_stacks_and_records_are_those_of_a_store_on_disk(bucket, finished):
    mine = {record.domain: record for record in bucket.store.domains()}
    theirs = {record.domain: record for record in finished.store.domains() if record.domain in DOMAINS}
    assert {name: sha for name, sha in committed(finished.store).items() if name[:2] in DOMAINS} == committed(
        bucket.store
    )
    for domain, record in theirs.items():
        assert (mine[domain].basis, mine[domain].rows) == (record.basis, record.rows)
        assert (mine[domain].row_losses, mine[domain].matrix) == (record.row_losses, record.matrix)


def test_the_store_proves_itself(bucket):
    found = bucket.store.verify()
    assert found.sound
    assert len(bucket.store.bundles()) == 1
