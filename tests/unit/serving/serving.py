"""A server as a user starts it: a process of its own, its address from its first line, its log in a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


def until(what: str, true: Callable[[], bool], timeout_s: float = WAIT_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
