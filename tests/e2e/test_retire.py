"""Taking domains out of a finished campaign, as a user does: what is left is as it was, to the bit, and is served."""

import json

import job
import pytest
from campaigns import outcome
from mlflow import MlflowClient

from bs_cluster.campaign.recompute import certificate_in, recompute
from bs_cluster.cli.main import main
from bs_cluster.config import load_config
from bs_cluster.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def started(run, tiny_settings, tmp_path_factory):
    """A finished campaign of three domains."""
    folder = tmp_path_factory.mktemp("retired")
    settings = tiny_settings(folder / "store", ("aa", "bb", "cc"))
    settings["domains"][2]["after"] = ["bb"]
    config = job.write_config(folder / "tiny.yaml", settings)
    return outcome(run(config), config, folder / "store")


def certified(store: Store, bundle: int) -> list:
    """The lines of a bundle's certificate that do not come out again."""
    manifest = next(manifest for number, _, manifest in store.bundles() if number == bundle)
    return [line for line in recompute(store, manifest, "cpu", 2, print).lines if line.verdict != "agrees"]


def logits(store: Store, bundle: int) -> dict:
    """Probed logits by domain, as the bundle's run computed them."""
    manifest = next(manifest for number, _, manifest in store.bundles() if number == bundle)
    return {one.domain: one.now.rows for one in certificate_in(store, manifest).isolated}


@pytest.fixture
def said(capsys):
    def said(*words: str) -> dict:
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return said


class TestRemoved:
    @pytest.fixture(scope="class")
    def removed(self, started, run):
        words = ("domains", "remove", "--config", str(started.config), "--name", "bb", "--reason", "licence")
        assert main(words) == 0
        return outcome(run(started.config), started.config, started.config.parent / "store")

    def test_the_config_is_without_it(self, removed):
        config = load_config(removed.config)
        assert [domain.name for domain in config.domains] == ["aa", "cc"]
        assert config.domain("cc").after == ()

    def test_nothing_is_trained(self, removed):
        assert "round" not in removed.job.out

    def test_history_only_grew(self, removed, started):
        assert {name: removed.refs[name] for name in started.refs} == started.refs
        assert removed.store.verify().sound
        assert removed.store.gc(0).blobs == ()

    def test_the_others_alone_are_as_they_were_to_the_bit(self, removed):
        before, after = logits(removed.store, 1), logits(removed.store, 2)
        assert set(before) == {"aa", "bb", "cc"}
        assert after == {domain: before[domain] for domain in ("aa", "cc")}
        assert removed.report["isolated_drift_max"] == 0

    def test_a_new_bundle_is_served_and_aliases_follow(self, removed):
        number, digest, bundle = removed.store.bundles()[-1]
        assert (number, bundle.domains) == (2, ("aa", "cc"))
        assert removed.store.standing().champion.manifest == digest
        uri = f"sqlite:///{removed.store.uri}/mlflow.db"
        client = MlflowClient(uri, uri)
        assert client.get_model_version_by_alias("tiny", "champion").tags["manifest"] == digest
        assert "champion" not in client.get_registered_model("tiny-bb").aliases
        assert "champion" in client.get_registered_model("tiny-cc").aliases
        assert client.get_model_version("tiny-bb", "1").tags["retired"] == "licence"

    def test_certificates_come_out_again(self, removed):
        assert certified(removed.store, 1) == []
        assert certified(removed.store, 2) == []
