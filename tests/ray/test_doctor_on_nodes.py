"""The doctor on a real cluster of two nodes, each with a fault that a user would bring along."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from tiny_campaign import settings, write_inputs

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The second node finds another torch's record before the one that is installed."""
    fake = tmp_path_factory.mktemp("fake")
    record = fake / "torch-9.9.9.dist-info" / "METADATA"
    record.parent.mkdir()
    record.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{fake}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        started.add_node(num_cpus=2, num_gpus=1)  # which this machine may well not have
    started.wait_for_nodes()
    yield started
    started.shutdown()


def doctor(cluster, folder: Path, *overrides: str, **environment: str) -> tuple[int, dict]:
    write_inputs(folder)
    file = folder / "campaign.yaml"
    file.write_text(json.dumps(settings(folder, folder / "store", ("aa", "bb"))))
    command = [sys.executable, "-m", "bs_cluster.cli", "doctor", "--config", str(file), *overrides]
    done = subprocess.run(
        [*command, "--address", cluster.address, "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=300,
    )
    return done.returncode, json.loads(done.stdout)


def test_a_node_with_another_version_is_named_and_the_rest_is_green(cluster, tmp_path):
    code, told = doctor(cluster, tmp_path)
    wrong = [check for check in told["checks"] if not check["ok"] and check["name"] != "gpus"]
    assert code == 1
    assert [(check["name"], "torch 9.9.9, elsewhere" in check["told"]) for check in wrong] == [("versions", True)]
    assert wrong[0]["node"]
    assert "gpus" in {check["name"] for check in told["checks"]}
    green = {check["name"] for check in told["checks"] if check["ok"]}
    assert {"code", "token", "addresses", "clock", "store", "base model", "rows' sources", "mlflow"} <= green


def test_more_workers_than_the_cluster_has_and_a_store_of_no_use_are_told(cluster, tmp_path):
    more = ["training.num_workers=8", "training.global_batch=32", "store.uri=/sys/fs/bs_store"]
    code, told = doctor(cluster, tmp_path, *more, "registry.tracking_uri=http://127.0.0.1:9")
    wrong = {check["name"]: check["told"] for check in told["checks"] if not check["ok"]}
    assert code == 1
    assert "8 training workers" in wrong["resources"]
    assert "/sys/fs/bs_store" in wrong["store"]
    assert "is away" in wrong["mlflow"]


def test_a_wrong_token_is_told(cluster, tmp_path):
    code, told = doctor(cluster, tmp_path, RAY_AUTH_TOKEN="f" * 64)
    assert code == 1
    assert told["checks"][0]["name"] == "ray"
    assert "token" in told["checks"][0]["told"]
