"""A server as a user starts it: a process of its own, its address from its first line, its log in a file."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from openai import OpenAI

ROOT = Path(__file__).parents[3]
KEY = "sk-of-this-test"
START_TIMEOUT_S, WAIT_TIMEOUT_S = 120, 30


@dataclass
class Served:
    url: str
    process: subprocess.Popen[str]
    log: Path

    def client(self, key: str = KEY) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=10)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"bs_cluster_{name}[{{ ]", line))


@contextmanager
def server(store: str, log: Path, *options: str, key: str | None = KEY) -> Iterator[Served]:
    command = [sys.executable, "-m", "bs_cluster.cli", "serve", "--campaign", "tiny", "--store", store, "--port", "0"]
    environment = {**os.environ, **({} if key is None else {"BS_CLUSTER_API_KEY": key})}
    with log.open("w") as err:
        process = subprocess.Popen(
            [*command, *options], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=err, text=True
        )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, log.read_text()
        served = Served(found[0], process, log)
        until("it is ready", lambda: served.get("/ready").status_code == 200, START_TIMEOUT_S)
        yield served
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def replicated(store: str, log: Path, cluster: str, *options: str) -> Iterator[Served]:
    """``serve --replicas`` on the Ray cluster at ``cluster``, with ``options``; it says where once it answers."""
    port = free_port()
    words = ["serve", "--campaign", "tiny", "--store", store, "--port", str(port), *options]
    with log.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "bs_cluster.cli", *words],
            cwd=ROOT,
            env={**os.environ, "BS_CLUSTER_API_KEY": KEY, "RAY_ADDRESS": cluster},
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    assert process.stdout is not None
    try:
        assert f"serving tiny at http://127.0.0.1:{port}" in process.stdout.readline(), log.read_text()
        yield Served(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def replicas() -> list[int]:
    """Process ids of the replicas that live."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [one.pid] if "ServeReplica:tiny" in " ".join(one.cmdline()) else []
    return found


def until(what: str, true: Callable[[], bool], timeout_s: float = WAIT_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
