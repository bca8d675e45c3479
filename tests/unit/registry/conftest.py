import itertools
import shutil
import time

import pytest
from mlflow import MlflowClient
from tiny_history import bundle_manifest, commit_round, domain_record

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.registry import Registry, artifacts
from bs_cluster.registry.database import ensure_database
from bs_cluster.store import Store

ANSWERING_MODEL = """
import json
from pathlib import Path

import mlflow
import pandas as pd


class Answering(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.reference = json.loads(Path(context.artifacts["bundle"]).read_text())

    def predict(self, context, model_input: pd.DataFrame, params=None):
        where = f"{self.reference['bundle']} in {self.reference['store_uri']}"
        return [f"{where}: {prompt}" for prompt in model_input.iloc[:, 0]]


mlflow.models.set_model(Answering())
"""


@pytest.fixture(scope="session")
def settings():
    """Call it with sections that differ from the defaults to have a campaign's config."""

    def settings(campaign: str = "demo", **sections) -> CampaignConfig:
        domains = [{"name": name, "sources": [{"kind": "embedded", "name": name}]} for name in ("chat", "math")]
        return CampaignConfig.model_validate({"campaign": campaign, "domains": domains, **sections})

    return settings


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """An empty MLflow database with its schema, and the seconds that it took to build."""
    path, started = tmp_path_factory.mktemp("mlflow") / "mlflow.db", time.monotonic()
    ensure_database(path, print)
    return path, time.monotonic() - started


@pytest.fixture(scope="session")
def migrated(built):
    return built[0]


@pytest.fixture(scope="session")
def building_s(built):
    return built[1]


@pytest.fixture
def wipe(migrated, tmp_path):
    """Call it to have an empty MLflow, again; returns its URI."""
    numbers = itertools.count(1)

    def wipe() -> str:
        path = tmp_path / f"mlflow{next(numbers)}.db"
        shutil.copy(migrated, path)
        return f"sqlite:///{path}"

    return wipe


@pytest.fixture
def uri(wipe) -> str:
    return wipe()


@pytest.fixture
def client(uri) -> MlflowClient:
    return MlflowClient(uri, uri)


@pytest.fixture
def registry(uri) -> Registry:
    return Registry(uri, "demo", "brainstacks")


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """A pyfunc model that answers without a base model, in the place of the one that loads the bundle."""
    path = tmp_path / "answering.py"
    path.write_text(ANSWERING_MODEL)
    monkeypatch.setattr(artifacts, "PYFUNC_MODEL", path)


@pytest.fixture
def store(tmp_path, answering) -> Store:
    """Two domains, three stacks, one rejected round and a bundle."""
    store = Store(str(tmp_path / "store"), "demo")
    commit_round(store, tmp_path / "rounds", "chat", 1, 0)
    commit_round(store, tmp_path / "rounds", "chat", 2, 0)
    store.close_domain(domain_record(store, "chat", 0))
    commit_round(store, tmp_path / "rounds", "math", 1, 1)
    store.close_domain(domain_record(store, "math", 1, rejected=1))
    store.commit_bundle(bundle_manifest(store, 1))
    store.promote(1, "champion", "guarded", "the first bundle")
    return store
