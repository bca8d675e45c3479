import pytest
from serving import server
from tiny_bundle import commit_bundle

from bs_cluster.promotion import HAND
from bs_cluster.records import CHAMPION
from bs_cluster.serving.runtime import BundleRuntime

DOMAINS = ("aa", "bb")


@pytest.fixture(scope="session")
def bundled(inputs):
    """A campaign whose first bundle is champion."""
    bundled = commit_bundle(inputs, inputs / "store", DOMAINS)
    bundled.store.promote(1, CHAMPION, HAND, "the first")
    return bundled


@pytest.fixture(scope="session")
def runtime(bundled):
    """The same bundle in this process, as ``bs_cluster generate`` has it."""
    return BundleRuntime(bundled.store, bundled.manifest, "cpu")


@pytest.fixture(scope="session")
def served(bundled, tmp_path_factory):
    """One server for all tests that leave it as it was."""
    with server(bundled.store.uri, tmp_path_factory.mktemp("served") / "log") as served:
        yield served
