import functools
import signal
from pathlib import Path
from typing import Any

import job
import pytest
from campaigns import DOMAINS, Stopped, outcome, refs
from tiny_campaign import TASKS, settings, write_inputs

TESTS = str(Path(job.__file__).parent)


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
    """Of the cluster that all jobs here share but those that are killed. Its workers find rewards of these tests as
    they would find those of a user's package."""
    with job.cluster(tmp_path_factory.mktemp("cluster") / "ray.log", PYTHONPATH=TESTS) as address:
        yield address


@pytest.fixture(scope="session")
def run(ray_address):
    """Runs a job on the shared cluster."""
    return functools.partial(job.run, RAY_ADDRESS=ray_address, PYTHONPATH=TESTS)


@pytest.fixture(scope="session")
def finished(run, tiny_settings, tmp_path_factory):
    """The campaign that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    config = job.write_config(folder / "tiny.yaml", tiny_settings(folder / "store"))
    return outcome(run(config), config, folder / "store")


@pytest.fixture(scope="session")
def again(run, finished):
    """The same command once more, and the references after it."""
    return run(finished.config), refs(finished.config.parent / "store")


@pytest.fixture(scope="session")
def stopped(ray_address, again, finished, tiny_settings, tmp_path_factory):
    """The same campaign, its config now with a third domain; in its first round the job is told to stop."""
    folder, uri = tmp_path_factory.mktemp("grown"), finished.config.parent / "store"
    wanted = tiny_settings(uri, tuple(TASKS))
    wanted["domains"][2]["after"] = ["bb"]
    config = job.write_config(folder / "tiny.yaml", wanted)
    begun = job.Running(config, folder / "log", RAY_ADDRESS=ray_address)
    try:
        begun.wait_until("a step", lambda: "cc_r1          step" in begun.log.read_text())
        begun.process.send_signal(signal.SIGTERM)
        code = begun.process.wait(timeout=60)
    finally:
        begun.kill()
    return Stopped(config, code, begun.log.read_text(), job.run_statuses(f"sqlite:///{uri}/mlflow.db"))


@pytest.fixture(scope="session")
def grown(run, stopped, finished):
    """The third domain, by the same command again."""
    return outcome(run(stopped.config), stopped.config, finished.config.parent / "store")
