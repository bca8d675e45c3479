"""Workers on machines that are taken and come back: a campaign trains on with those that are left, and grows again."""

import json
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import job
import pytest
from ray.cluster_utils import Cluster
from tiny_campaign import settings, write_inputs

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

NOTICE_S = 20
STEPS = 1500  # one worker alone takes most of a minute: long enough for a node to join


@pytest.fixture
def metadata():
    """EC2's metadata server, as it answers an instance that was given notice."""

    class Metadata(BaseHTTPRequestHandler):
        def do_PUT(self):
            self.answer("a token")

        def do_GET(self):
            assert self.headers["X-aws-ec2-metadata-token"] == "a token"
            assert self.path == "/latest/meta-data/spot/instance-action"
            taken_at = datetime.now(UTC) + timedelta(seconds=NOTICE_S)
            self.answer(json.dumps({"action": "terminate", "time": taken_at.strftime("%Y-%m-%dT%H:%M:%SZ")}))

        def answer(self, text: str):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield started
    started.shutdown()


def test_a_spot_node_that_goes_costs_no_step_and_one_that_comes_is_used(cluster, metadata, tmp_path):
    leaving = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    training = {"min_workers": 1, "resize_every_s": 3, "steps": STEPS, "max_rounds": 1, "eval_every": STEPS}
    training |= {"checkpoint_every_s": 600, "learning_rate": 1e-3}  # no checkpoint but for the notice
    given = settings(write_inputs(tmp_path), tmp_path / "store", ("aa",), training=training, sweep={"evaluators": 1})
    config = job.write_config(tmp_path / "tiny.yaml", given)
    campaign = job.Running(config, tmp_path / "log", RAY_ADDRESS=cluster.address)
    campaign.wait_until("a step of two", lambda: "aa_r1          step" in campaign.log.read_text())
    watcher = [sys.executable, "-m", "bs_cluster.spot", "aws", f"--metadata={metadata}", f"--address={cluster.address}"]
    subprocess.run([*watcher, f"--node-id={leaving.node_id}"], check=True, timeout=60)
    campaign.wait_until("notice", lambda: "a node is taken in" in campaign.log.read_text())
    campaign.wait_until("checkpoint", lambda: any((tmp_path / "store/tiny/rounds").rglob("*.safetensors")))
    cluster.remove_node(leaving, allow_graceful=False)
    campaign.wait_until("start with one", lambda: "1 worker loads" in campaign.log.read_text())
    campaign.wait_until("step of one", lambda: "goes on after step" in campaign.log.read_text())
    cluster.add_node(num_cpus=1)
    campaign.wait_until("start with two", lambda: campaign.log.read_text().count("2 workers load") == 2)
    assert campaign.process.wait(job.JOB_TIMEOUT_S) == 0
    log = campaign.log.read_text()
    noticed = int(re.search(r"with 1 worker: checkpoint after step (\d+)", log)[1])
    first, second = (int(step) for step in re.findall(r"goes on after step (\d+), from its checkpoint", log))
    assert noticed <= first <= second < STEPS
    assert "Traceback" not in log
