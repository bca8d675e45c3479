import functools
from pathlib import Path
from typing import Any

import job
import pytest
from campaigns import DOMAINS, outcome
from tiny_campaign import settings, write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def tiny_settings(inputs):
    """Builds the config of every campaign here: two domains of at most two rounds of six steps."""

    def build(store: Path, domains=DOMAINS) -> dict[str, Any]:
        return settings(inputs, store, domains)

    return build


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory):
    """Of the cluster that all jobs here share but those that are killed."""
    with job.cluster(tmp_path_factory.mktemp("cluster") / "ray.log") as address:
        yield address


@pytest.fixture(scope="session")
def run(ray_address):
    """Runs a job on the shared cluster."""
    return functools.partial(job.run, RAY_ADDRESS=ray_address)


@pytest.fixture(scope="session")
def finished(run, tiny_settings, tmp_path_factory):
    """The campaign that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    config = job.write_config(folder / "tiny.yaml", tiny_settings(folder / "store"))
    return outcome(run(config), config, folder / "store")
