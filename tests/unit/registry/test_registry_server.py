"""The same over HTTP: a real MLflow server that stops answering, and answers again, while a campaign trains; and that
tells others of a new champion."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from tiny_history import bundle_manifest, commit_round

from bs_cluster.errors import RegistryUnavailable
from bs_cluster.registry import Registry

pytestmark = pytest.mark.slow

START_TIMEOUT_S = 120


@contextmanager
def mlflow_server(database: Path, port: int):
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    storage = [
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--artifacts-destination",
        str(database.parent / "served"),
    ]
    # A receiver on this machine and without TLS is for tests: MLflow sends to public https addresses alone.
    local = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    with (database.parent / "server.log").open("a") as log:
        server = subprocess.Popen(
            [*command, *storage],
            stdout=log,
            stderr=log,
            cwd=database.parent,
            env=os.environ | local,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}", server
    finally:
        os.killpg(server.pid, signal.SIGCONT)
        server.terminate()
        server.wait(timeout=30)


def wait_for(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the MLflow server ended with {server.returncode}; see server.log"
        try:
            if requests.get(url, timeout=1).ok:
                return
        except (requests.ConnectionError, requests.Timeout):
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer within {START_TIMEOUT_S} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def receiver():
    """An address, and a queue of what is posted to it."""
    posted: queue.Queue[dict] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/champion", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_that_hangs_and_comes_back_ends_up_the_same(store, migrated, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    database, port = tmp_path / "server.db", free_port()
    database.write_bytes(migrated.read_bytes())
    with mlflow_server(database, port) as (uri, server), receiver() as (address, posted):
        client = MlflowClient(uri, uri)
        client.create_webhook("champion", address, ["model_version_alias.created"])
        registry = Registry(uri, "demo", "brainstacks")
        registry.open_campaign(settings())
        assert len(registry.sync(store).stacks) == 3
        commit_round(store, tmp_path / "rounds", "code", 1, 2)
        os.killpg(server.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            registry.sync(store)
        assert time.monotonic() - started < 15
        os.killpg(server.pid, signal.SIGCONT)
        assert [stack.name for stack in registry.sync(store).stacks] == ["code_r1"]
        assert registry.sync(store).stacks == ()
        versions = client.search_model_versions("tags.campaign = 'demo'")
        assert sorted((v.name, int(v.version)) for v in versions) == [
            ("demo", 1),
            ("demo-chat", 1),
            ("demo-chat", 2),
            ("demo-code", 1),
            ("demo-math", 1),
        ]
        assert client.get_model_version_by_alias("demo-chat", "champion").version == "2"
        store.commit_bundle(bundle_manifest(store, 2, served={"chat": 1.0, "math": 2.0}, answered=3))
        store.promote(2, "champion", "guarded", "better")
        registry.sync(store)
        registry.sync(store)
        (rows,) = client.search_runs(["1"], "tags.kind = 'evaluation'")
        traces = client.search_traces(locations=["1"], run_id=rows.info.run_id)
        assert sorted(trace.info.client_request_id for trace in traces) == [
            f"{owner}-{place}" for owner in ("chat", "math") for place in range(3)
        ]
        assert {len(trace.data.spans) for trace in traces} == {2}
        assert {len(trace.info.assessments) for trace in traces} == {6}
        champions = [("demo", "1"), ("demo", "2"), ("demo-chat", "2"), ("demo-code", "1"), ("demo-math", "1")]
        told = [posted.get(timeout=60)["data"] for _ in champions]
        assert sorted((model["name"], model["version"]) for model in told) == champions
        assert {model["alias"] for model in told} == {"champion"}
        assert posted.empty()  # each of them once
        (model,) = client.search_logged_models(["1"], "name = 'code_r1'")
        names = {file.path.rpartition("/")[2] for file in client.list_logged_model_artifacts(model.model_id)}
        assert {"adapter_config.json", "manifest.json", "weights.txt", "MLmodel", "answering.py"} <= names
        assert not any(name.endswith(".safetensors") for name in names)  # weights never leave the store
