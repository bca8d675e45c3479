"""What platforms say before they take a machine, as their metadata servers say it."""

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from bs_cluster import spot


@pytest.fixture
def metadata():
    """A metadata server: what it answers by path, and the headers that it wants."""

    class Metadata(BaseHTTPRequestHandler):
        answers: ClassVar[dict[str, str]] = {}
        asked: ClassVar[list[tuple[str, str]]] = []

        def do_GET(self):
            self.asked.append((self.command, self.path))
            text = self.answers.get(self.path)
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "not found").encode())

        do_PUT = do_GET

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Metadata, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


ACTION = "/latest/meta-data/spot/instance-action"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


def test_ec2_says_when(metadata):
    server, url = metadata
    server.answers = {"/latest/api/token": "secret"}
    assert spot.aws_notice(url) is None
    assert server.asked[0] == ("PUT", "/latest/api/token")
    taken_at = datetime.now(UTC) + timedelta(seconds=100)
    server.answers[ACTION] = json.dumps({"action": "terminate", "time": taken_at.strftime("%Y-%m-%dT%H:%M:%SZ")})
    assert spot.aws_notice(url) == pytest.approx(100, abs=2)
    server.answers[ACTION] = json.dumps({"action": "terminate", "time": "2020-01-01T00:00:00Z"})
    assert spot.aws_notice(url) == 0.0


def test_google_cloud_says_that(metadata):
    server, url = metadata
    server.answers = {PREEMPTED: "FALSE"}
    assert spot.gcp_notice(url) is None
    server.answers[PREEMPTED] = "TRUE"
    assert spot.gcp_notice(url) == spot.GCP_NOTICE_S


def test_a_server_that_answers_nonsense_or_nothing_is_asked_again_and_told_once(metadata, monkeypatch, capsys):
    server, url = metadata
    server.answers = {"/latest/api/token": "secret", ACTION: "<html>"}
    asked = []

    def slept(seconds: float) -> None:
        asked.append(seconds)
        if len(asked) == 3:
            server.answers[ACTION] = json.dumps({"action": "stop", "time": "2020-01-01T00:00:00Z"})

    monkeypatch.setattr(spot.time, "sleep", slept)
    assert spot.wait_for_notice("aws", url) == 0.0
    assert asked == [spot.POLL_EVERY_S] * 3
    assert capsys.readouterr().out.count("gives no answer to go by") == 1
