"""Runs the campaign's job as a user does, as a process of its own: on a cluster that jobs share, or with its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[1]
JOB_TIMEOUT_S = 400
WAIT_TIMEOUT_S = 300
END_TIMEOUT_S = 60
START_TIMEOUT_S = 120


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str
    seconds: float


def environment(**more: str) -> dict[str, str]:
    """Never a user's cluster or MLflow: ``RAY_ADDRESS=local``, the default, starts one that ends with the job."""
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return {**kept, "RAY_ADDRESS": "local", **more}


def as_user(*arguments: str) -> str:
    """What Python says to these arguments in a process of its own, started from anywhere."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment(),
        cwd=os.sep,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def cluster(log: Path, **more: str) -> Iterator[str]:
    """A head node of two CPUs for one job after another, ``more`` in its processes' environment; its address."""
    ports = [free_port() for _ in range(2)]
    start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    start += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--dashboard-agent-listen-port=0"]
    with log.open("wb") as out:
        head = subprocess.Popen(
            [*start, "--num-cpus=2"], stdout=out, stderr=out, start_new_session=True, env=os.environ | more
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"Ray did not start within {START_TIMEOUT_S} s:\n{log.read_text()}"
            time.sleep(0.1)
        yield f"127.0.0.1:{ports[0]}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # asked to end, it takes half a minute, and no test looks at how
        head.wait(END_TIMEOUT_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def command(config: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs/outer_loop.py"), "--config", str(config), *overrides]


def run(config: Path, *overrides: str, **more: str) -> Done:
    """The job from start to end."""
    started = time.monotonic()
    found = subprocess.run(
        command(config, *overrides),
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
        check=False,
    )
    return Done(found.returncode, found.stdout, found.stderr, time.monotonic() - started)


class Running:
    """A job under way, to be disturbed. Its output goes to ``log``."""

    def __init__(self, config: Path, log: Path, **more: str):
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command(config), env=environment(**more), stdout=out, stderr=subprocess.STDOUT
            )

    def wait_until(self, what: str, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while not true():
            assert self.process.poll() is None, f"the job ended before {what}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"no {what} within {WAIT_TIMEOUT_S} s:\n{self.log.read_text()}"
            time.sleep(0.05)

    def children(self, title: str = "") -> list[psutil.Process]:
        """Processes that the job started, itself or through Ray, whose title begins so; none once it has ended."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [child for child in found if _title(child).startswith(title)]

    def kill(self) -> None:
        """SIGKILL to the driver alone; its Ray, and with it the workers, must end by themselves."""
        started, workers = self.children(), self.children("ray::RayTrainWorker")
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + END_TIMEOUT_S
        while any(map(_lives, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        outlived = [worker for worker in workers if _lives(worker)]
        for child in filter(_lives, started):  # Ray's agents stay for minutes when their raylet is killed
            child.kill()
        assert not outlived, f"{len(outlived)} training workers outlived their driver by {END_TIMEOUT_S} s"


def _lives(process: psutil.Process) -> bool:
    """A container's first process may never reap orphans: a zombie has ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return ""


def run_statuses(uri: str) -> dict[str, str]:
    """The status of every run in MLflow there, by its name."""
    client = MlflowClient(uri, uri)
    runs = client.search_runs([client.get_experiment_by_name("brainstacks").experiment_id])
    return {run.info.run_name: run.info.status for run in runs}
