"""Where a campaign's parts find each other: store, MLflow, report folder, and what makes a bundle another one."""

from pathlib import Path

import pytest
from tiny_campaign import campaign

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.connect import connect, process_environment
from bs_cluster.campaign.recorder import tracking_uri
from bs_cluster.config import identity
from bs_cluster.config.identity import bundle_digest
from bs_cluster.errors import ConfigError
from bs_cluster.quiet import KEEP_FREED_MEMORY
from bs_cluster.store import Store


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


@pytest.fixture
def make(tmp_path):
    """A config with sections changed; the store is a folder unless said otherwise."""

    def make(**changes):
        return campaign(tmp_path, tmp_path / "store", ("aa", "bb"), **changes)

    return make


class TestTrackingUri:
    def test_is_the_one_that_the_config_names(self, make, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
        assert tracking_uri(make(registry={"tracking_uri": "http://named"})) == "http://named"

    def test_else_the_environment_s(self, make, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
        assert tracking_uri(make()) == "http://elsewhere"

    def test_else_sqlite_beside_a_local_store(self, make, tmp_path):
        assert tracking_uri(make()) == f"sqlite:///{tmp_path}/store/mlflow.db"

    def test_of_a_relative_store_is_absolute_all_the_same(self, make, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert tracking_uri(make(store={"uri": "here"})) == f"sqlite:///{tmp_path}/here/mlflow.db"

    def test_must_be_named_for_a_store_that_is_no_folder(self, make):
        with pytest.raises(ConfigError, match=r"set registry\.tracking_uri or MLFLOW_TRACKING_URI"):
            tracking_uri(make(store={"uri": "s3://bucket/stacks"}))


class TestConnect:
    def test_refuses_a_relative_store_in_a_submitted_job(self, make, monkeypatch):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
        with pytest.raises(ConfigError, match=r"store\.uri = 'stacks' is relative") as raised:
            connect(make(store={"uri": "stacks"}))
        assert "store.uri=$PWD/stacks" in str(raised.value)

    def test_workers_on_a_cpu_keep_the_memory_they_free(self, make):
        on_cpu = process_environment(make(training={"use_gpu": False, "threads_per_worker": 3}))
        assert on_cpu.items() >= KEEP_FREED_MEMORY.items()
        assert (on_cpu["DS_ACCELERATOR"], on_cpu["OMP_NUM_THREADS"]) == ("cpu", "3")
        on_gpu = process_environment(make(training={"use_gpu": True}))
        assert not on_gpu.keys() & {"DS_ACCELERATOR", *KEEP_FREED_MEMORY}

    def test_workers_may_take_as_long_to_start_as_the_config_allows(self, make):
        given = process_environment(make(training={"start_timeout_s": 1234}))
        assert given["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "1234"
        may_shrink = process_environment(make(training={"start_timeout_s": 1234, "min_workers": 1}))
        assert may_shrink["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "60"
        assert all(isinstance(value, str) for value in given.values())


class TestFolders:
    def test_lie_beside_a_local_store(self, make, tmp_path):
        assert Campaign.of(make()).report_folder() == tmp_path / "store/tiny/report"
        assert Campaign.of(make()).ray_storage == str(tmp_path / "store/tiny/ray")

    def test_of_a_remote_store_whose_address_has_options(self, make, tmp_path):
        remote = make(store={"uri": "s3://bucket/stacks/?endpoint_override=minio:9000&scheme=http"})
        there = Campaign(remote, Store(str(tmp_path), "tiny"), ("aa", "bb"))
        assert there.ray_storage == "s3://bucket/stacks/tiny/ray?endpoint_override=minio:9000&scheme=http"

    def test_of_a_remote_store(self, make, tmp_path):
        remote = make(store={"uri": "s3://bucket/stacks/"}, base={"cache_dir": str(tmp_path / "cache")})
        there = Campaign(remote, Store(str(tmp_path), "tiny"), ("aa", "bb"))
        assert there.ray_storage == "s3://bucket/stacks/tiny/ray"
        assert there.report_folder() == Path(tmp_path / "cache/runs/tiny/report")


class TestConfigDigest:
    def test_changes_with_what_a_bundle_depends_on(self, make):
        before = bundle_digest(make())
        assert bundle_digest(make()) == before
        for changes in ({"router": {"folds": 3}}, {"sweep": {"search": "adaptive"}}, {"training": {"steps": 7}}):
            assert bundle_digest(make(**changes)) != before

    def test_changes_with_the_way_routers_are_made(self, make, monkeypatch):
        before = bundle_digest(make())
        monkeypatch.setattr(identity, "ROUTING", identity.ROUTING + 1)
        assert bundle_digest(make()) != before, "the next run of a complete campaign makes itself a new bundle"

    def test_does_not_change_with_where_it_is_stored_and_shown(self, make, tmp_path):
        before = bundle_digest(make())
        assert bundle_digest(make(store={"uri": str(tmp_path / "moved")})) == before
        assert bundle_digest(make(registry={"tracking_uri": "http://named"})) == before
