"""A domain's version in MLflow is the domain: ``models:/<campaign>-<domain>@champion`` answers with all its rounds, and
an older version as the domain stood then."""

import json
import logging
import warnings

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.artifacts import download_artifacts
from tiny_bundle import commit_bundle
from tiny_campaign import commit_random_stacks

from bs_cluster.errors import ConfigError, NotInStoreError, UsageError
from bs_cluster.records import StackId
from bs_cluster.registry import Registry
from bs_cluster.serving.runtime import DomainRuntime
from bs_cluster.store import Store

PROMPTS = ["aa alpha12", "aa something longer", "bb beta1"]


@pytest.fixture(scope="module")
def twice(inputs, tmp_path_factory):
    """A campaign whose domains have two rounds each, in a store of its own, and its MLflow's address."""
    folder = tmp_path_factory.mktemp("twice")
    bundled = commit_bundle(inputs, folder / "store", ("aa", "bb"), rounds=2)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    Registry(uri, bundled.config.campaign, "brainstacks", logging.info).sync(bundled.store)
    return bundled, uri


def loaded(uri: str, model: str):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        return mlflow.pyfunc.load_model(model)
    finally:
        mlflow.set_tracking_uri(before)


def answers(bundled, names: list[str]) -> list[str]:
    """What the base answers with just these stacks firing."""
    runtime = object.__new__(DomainRuntime)  # the same decoding, whatever fires
    runtime.config, runtime.domain, runtime.stacked = bundled.config, "aa", bundled.stacked
    bundled.stacked.fire(names)
    try:
        return [answer.text for answer in runtime.answer(PROMPTS)]
    finally:
        bundled.stacked.fire(bundled.stacked.names)


def test_the_champion_of_a_domain_is_all_its_rounds(twice):
    bundled, uri = twice
    found = loaded(uri, "models:/tiny-aa@champion").predict(PROMPTS)
    assert [answer["completion"] for answer in found] == answers(bundled, ["aa_r1", "aa_r2"])
    assert [answer["completion"] for answer in found] != answers(bundled, ["aa_r2"])
    assert all(answer["gates"] == {"aa": 1.0} for answer in found)


def test_an_older_version_is_the_domain_as_it_stood_then(twice):
    bundled, uri = twice
    found = loaded(uri, "models:/tiny-aa/1").predict(PROMPTS)
    assert [answer["completion"] for answer in found] == answers(bundled, ["aa_r1"])


def test_it_shows_all_rounds_as_one_adapter_and_where_they_lie(twice, tmp_path):
    bundled, uri = twice
    version = mlflow.MlflowClient(uri, uri).get_model_version_by_alias("tiny-bb", "champion")
    folder = download_artifacts(version.source, dst_path=str(tmp_path), tracking_uri=uri)
    settings = json.loads((tmp_path / folder / "adapter_config.json").read_text())
    assert (settings["domain"], settings["round"], settings["rounds"]) == ("bb", 2, 2)
    told = (tmp_path / folder / "weights.txt").read_text()
    for ref, manifest in bundled.store.stacks():
        own = ref.stack.domain == "bb"
        assert (manifest.file("adapter_model.safetensors").sha256 in told) == own
        assert (ref.manifest in told) == own


def test_a_round_that_no_bundle_holds_says_so(inputs, twice, tmp_path):
    bundled, _ = twice
    store = Store(str(tmp_path / "store"), "tiny")
    commit_random_stacks(bundled.config, store, tmp_path / "staged")
    rounds = [ref for ref, _ in store.stacks() if ref.stack == StackId("aa", 1)]
    with pytest.raises(NotInStoreError, match="no bundle of campaign 'tiny' holds aa_r1 yet"):
        DomainRuntime(store, rounds, "cpu")


class TestAsking:
    """What ``predict`` takes, as the version's signature says it."""

    @pytest.fixture(scope="class")
    def bundle(self, twice):
        return loaded(twice[1], "models:/tiny/1")

    def test_a_string_a_list_and_a_frame_are_answered_alike(self, bundle):
        (first, *_) = told = bundle.predict(PROMPTS)
        assert bundle.predict(PROMPTS[0]) == [first]
        assert bundle.predict(pd.DataFrame({"question": PROMPTS, "row": [1, 2, 3]})) == told
        assert bundle.predict(pd.Series(PROMPTS)) == told

    def test_the_signature_names_what_it_takes_and_gives(self, bundle):
        signature = bundle.metadata.signature
        assert [param.name for param in signature.params] == ["max_new_tokens", "temperature", "domains"]
        assert signature.outputs.input_names() == ["completion", "gates"]
        assert signature.inputs.input_types() != []

    def test_max_new_tokens(self, bundle):
        (short,), (long,) = (bundle.predict(PROMPTS[0], params={"max_new_tokens": n}) for n in (1, 20))
        assert long["completion"].startswith(short["completion"])
        assert len(short["completion"]) < len(long["completion"])
        with pytest.raises(UsageError, match="max_new_tokens 0"):
            bundle.predict(PROMPTS[0], params={"max_new_tokens": 0})

    def test_temperature(self, bundle):
        (greedy,) = bundle.predict(PROMPTS[0])
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            drawn += bundle.predict(PROMPTS[0], params={"temperature": 2.0})
        assert drawn[0] == drawn[1]
        assert len({answer["completion"] for answer in (greedy, *drawn)}) == 3
        with pytest.raises(UsageError, match="temperature -1"):
            bundle.predict(PROMPTS[0], params={"temperature": -1.0})

    def test_domains(self, bundle, twice):
        (answer,) = bundle.predict(PROMPTS[0], params={"domains": ["bb"]})
        assert answer["gates"] == {"aa": 0.0, "bb": 1.0}
        (alone,) = loaded(twice[1], "models:/tiny-bb@champion").predict(PROMPTS[0], params={"domains": ["bb"]})
        assert answer["completion"] == alone["completion"]
        with pytest.raises(ConfigError, match="'zz' is not in the bundle"):
            bundle.predict(PROMPTS[0], params={"domains": ["zz"]})
        with pytest.raises(UsageError, match="this version is bb alone"):
            loaded(twice[1], "models:/tiny-bb@champion").predict(PROMPTS[0], params={"domains": ["aa"]})

    def test_it_is_quiet(self, twice, capfd):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            loaded(twice[1], "models:/tiny/1").predict(PROMPTS[0], params={"max_new_tokens": 1})
        out, err = capfd.readouterr()
        assert out + err == ""
        assert [str(warning.message) for warning in told] == []
