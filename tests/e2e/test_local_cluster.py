"""What ``make run`` starts: a cluster on loopback behind a token, on which the README's own command works."""

import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
import ray
from job import write_config
from tiny_campaign import settings, write_inputs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
LOCAL = [sys.executable, str(ROOT / "cluster/local.py")]
SLEEPS = 'python -c "import time; print(123, flush=True); time.sleep(600)"'
CONNECTS = (
    "python -c 'import ray; ray.init(); print(sum(ray.get([ray.remote(lambda: 21).remote() for _ in range(2)])))'"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("local") / "store"


@pytest.fixture(scope="module")
def local(store):
    """Runs ``cluster/local.py`` on a store of the test's own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}

    def local(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess:
        environment = {**kept, "BS_STORE": str(store)}
        return subprocess.run(
            [*LOCAL, *arguments], env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    yield local
    local("stop")


@pytest.fixture(scope="module")
def config(store, tmp_path_factory):
    """More workers than this machine can ever hold, so that a job on it ends at once, and the cluster stays."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    wide = {"num_workers": 400, "per_device_batch": 1, "global_batch": 400}
    return write_config(inputs / "tiny.yaml", settings(inputs, store, ("aa", "bb"), training=wide))


@pytest.fixture(scope="module")
def first(local, config):
    """The run that starts the cluster."""
    return local("run", "--config", str(config))


@pytest.fixture(scope="module")
def cluster(first, store):
    """The head's process."""
    return psutil.Process(json.loads((store / ".local-cluster.json").read_text())["group"])


def test_what_this_machine_can_never_hold_is_refused_in_plain_words(first):
    assert first.returncode == 1, first.stdout + first.stderr
    assert "ClusterResourceError: 400 training workers with 1 CPU each wanted, there can be" in first.stdout
    assert "Traceback" not in first.stdout
    assert "Running entrypoint" not in first.stdout


def shell(local, command: str, **more: str) -> subprocess.CompletedProcess:
    """A user's shell after ``eval "$(python cluster/local.py env)"``."""
    exports = local("env").stdout
    return subprocess.run(
        ["bash", "-c", f"{exports}\n{command}"],
        cwd=ROOT,
        env={"HOME": os.environ["HOME"], "PATH": "/usr/bin:/bin", **more},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_jobs_log_holds_no_escape_codes(first, local):
    reads = "from ray.job_submission import JobSubmissionClient as C; c = C()"
    reads += "; print([c.get_job_logs(job.submission_id) for job in c.list_jobs()])"
    logs = shell(local, f'python -c "{reads}"', FORCE_COLOR="1").stdout
    assert "ClusterResourceError" in logs
    assert "\\x1b" not in logs  # the list is printed as Python writes it


def test_every_socket_listens_on_loopback(cluster):
    processes = [cluster, *cluster.children(recursive=True)]
    assert len(processes) > 5
    listening = [
        (process.name(), connection.laddr.ip)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    assert {address for _, address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def test_nobody_without_the_token_is_answered(cluster, store, local):
    assert stat.S_IMODE((store / ".local-cluster-token").stat().st_mode) == 0o600
    refused = shell(local, "unset RAY_AUTH_TOKEN_PATH; RAY_AUTH_TOKEN=guess ray job list")
    assert refused.returncode != 0
    assert shell(local, "ray job list").returncode == 0


STARTS = "import runpy, sys; runpy.run_path(sys.argv[1])['start_cluster']()"


@pytest.fixture
def newer(cluster, tmp_path):
    """The cluster of another checkout, started after this one."""
    environment = {**os.environ, "BS_STORE": str(tmp_path / "store")}
    subprocess.run([sys.executable, "-c", STARTS, LOCAL[1]], env=environment, timeout=200, check=True)
    yield
    subprocess.run([*LOCAL, "stop"], env=environment, timeout=200, check=True)


def test_the_documented_command_works_as_it_is_typed_beside_another_cluster(newer, local):
    done = shell(local, f"ray job submit --working-dir jobs -- {CONNECTS}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n42\n" in done.stdout


ANOTHERS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("local_cluster", sys.argv[1])
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)
found_free, local.free_port = local.free_port, lambda port: int(sys.argv[2]) if port == 8265 else found_free(port)
try:
    print(local.start_cluster()["address"])
finally:
    local.stop()
"""


@pytest.mark.parametrize("status", [pytest.param(200, marks=pytest.mark.long), 403])
def test_anothers_dashboard_is_not_taken_for_its_own(status, tmp_path):
    """Two clusters that start at once find the same port free."""

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            answer = {"ray_version": ray.__version__, "version": "4"} if self.path == "/api/version" else []
            self.wfile.write(json.dumps(answer).encode())

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started = subprocess.run(
            [sys.executable, "-c", ANOTHERS, str(ROOT / "cluster/local.py"), str(server.server_port)],
            env={**os.environ, "BS_STORE": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        server.shutdown()
    assert started.returncode == 0, started.stderr
    address = re.search(r"http://127.0.0.1:(\d+)", started.stdout)
    assert address
    assert int(address[1]) != server.server_port
    assert "the local cluster is stopped" in started.stdout


def test_another_campaign_is_not_followed_without_a_word(cluster, local, config):
    submitted = shell(
        local,
        f'ray job submit --no-wait --submission-id other-job --metadata-json \'{{"campaign": "other"}}\' -- {SLEEPS}',
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    started = time.monotonic()
    refused = local("run", "--config", str(config))
    assert refused.returncode == 1
    assert time.monotonic() - started < 60
    assert "job other-job of campaign other is under way" in refused.stderr
    assert "make stop" in refused.stderr
    stopped = local("stop")
    assert "stopping job other-job of campaign other" in stopped.stdout
    assert not cluster.is_running() or cluster.status() == psutil.STATUS_ZOMBIE
