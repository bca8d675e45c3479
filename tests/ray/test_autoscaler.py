"""A cluster that grows, with Ray's own fake provider: what it may add is read from it, asked of it, and let go."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90

# In a process of its own, as a driver is.
DRIVER = """
import sys, time, ray
from bs_cluster.campaign.nodes import nodes_for, read_cluster
from bs_cluster.campaign.resources import Ask, refuse_impossible
from bs_cluster.errors import ClusterResourceError

ray.init(address=sys.argv[1], log_to_driver=False)
cluster = read_cluster()
(kind,) = cluster.types
print("MAY ADD", kind.most, kind.name, kind.resources["CPU"], cluster.most_workers)
asked = Ask("training workers", 2, 2, 3.0, 0.0, "training.num_workers")
try:
    refuse_impossible([Ask("evaluators", 4, 4, 4.0, 0.0, "sweep.evaluators")], cluster)
except ClusterResourceError as error:
    print("REFUSED", error)
refuse_impossible([asked], cluster)
with nodes_for(asked, cluster, 120.0, lambda line: print("SAID", line)) as room:
    print("ROOM", room.cluster.has_room(asked))
"""


@pytest.fixture
def head(tmp_path):
    """The address of a head with one CPU, to which up to two nodes of three may come."""
    port = 6397
    settings = yaml.safe_load((ROOT / "cluster/local_autoscale.yaml").read_text())
    settings["provider"]["gcs_address"] = f"127.0.0.1:{port}"
    settings["max_workers"] = 2
    settings["available_node_types"]["cpu_worker"]["resources"]["CPU"] = 3
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(settings))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=1"]
    command += ["--include-dashboard=false", f"--autoscaling-config={tmp_path / 'cluster.yaml'}"]
    environment = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd="/"
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Ray runtime started" not in (tmp_path / "head.log").read_text():
        assert process.poll() is None, (tmp_path / "head.log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "head.log").read_text()
        time.sleep(0.5)
    yield f"127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def test_what_may_come_is_known_waited_for_and_what_never_can_is_refused(head):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, head],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "MAY ADD 3 cpu_worker 3 2.0" in lines
    (refused,) = (line for line in lines if line.startswith("REFUSED"))
    assert "4 evaluators with 4 CPUs each wanted, there can be 0" in refused
    assert "may add 3 cpu_worker (3 CPUs), 2 in all" in refused
    said = [line for line in lines if line.startswith("SAID")]
    assert said[0].startswith("SAID waiting for nodes: room for 0 of 2 training workers with 3 CPUs each")
    assert lines[-1] == "ROOM 2"
