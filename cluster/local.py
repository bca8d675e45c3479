"""A Ray cluster on this machine for ``make run``: start or find it, submit the campaign, follow it, stop it.

    python cluster/local.py run --config jobs/configs/embedded.yaml [key=value …]
    python cluster/local.py ui        # MLflow in a browser
    python cluster/local.py stop      # ends what this file started, and nothing else

The head runs as one process group whose id is kept in a file: ``ray stop`` would end every Ray of the host.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Before Ray is imported: this cluster listens on 127.0.0.1 only, and every process that talks to it must agree.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "stacks_store"
STATE = STORE / ".local-cluster.json"
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 90
RUNNING = {JobStatus.PENDING, JobStatus.RUNNING}


def free_port(wanted: int) -> int:
    """``wanted`` if nothing listens there, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def running_cluster() -> dict[str, Any] | None:
    """The cluster that an earlier call started, if its process still lives."""
    if not STATE.exists():
        return None
    state = json.loads(STATE.read_text())
    try:
        os.killpg(state["group"], 0)
    except ProcessLookupError:
        STATE.unlink()
        return None
    return state


def start_cluster() -> dict[str, Any]:
    """A head node with all CPUs of this machine (at least two), on 127.0.0.1."""
    STORE.mkdir(exist_ok=True)
    port, dashboard, agent = free_port(6379), free_port(8265), free_port(52365)  # another Ray may be at home here
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}", f"--num-cpus={max(2, os.cpu_count() or 2)}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--object-store-memory={1 << 30}"),
    ]
    log = (STORE / ".local-cluster.log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd="/")
    state = {"group": process.pid, "address": f"http://127.0.0.1:{dashboard}"}
    STATE.write_text(json.dumps(state))
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            JobSubmissionClient(state["address"]).list_jobs()
            return state
        except (ConnectionError, RuntimeError):  # not up yet
            time.sleep(0.5)
    stop()
    raise SystemExit(f"Ray did not start within {START_TIMEOUT_S} s; its log is {log.name}")


def run(config: str, overrides: list[str]) -> int:
    """Submits the campaign and follows it to its end; a run already under way is followed instead."""
    found = running_cluster()
    state = found or start_cluster()
    print(f"Ray dashboard  {state['address']}{'  (already running)' if found else ''}", flush=True)
    client = JobSubmissionClient(state["address"])
    under_way = [job.submission_id for job in client.list_jobs() if job.status in RUNNING and job.submission_id]
    job = under_way[0] if under_way else submit(state["address"], config, overrides)
    if under_way:
        print(f"following {job}, which is under way; `make stop` ends it", flush=True)
    try:
        subprocess.run([str(BIN / "ray"), "job", "logs", "--follow", "--address", state["address"], job], check=False)
    except KeyboardInterrupt:
        print("\nstopping the job; run the same command to go on", flush=True)
        client.stop_job(job)
        return 130
    status = client.get_job_status(job)
    if status != JobStatus.SUCCEEDED:
        print(f"job {job}: {status}", file=sys.stderr)
        return 1
    print(f"  in a browser         make ui (MLflow), {state['address']} (Ray); `make stop` ends the local cluster")
    return 0


def submit(address: str, config: str, overrides: list[str]) -> str:
    """Submits through ``ray job submit``; returns the submission id."""
    job = f"campaign-{time.strftime('%Y%m%d-%H%M%S')}"
    stored = [] if any(o.startswith("store.uri=") for o in overrides) else [f"store.uri={STORE}"]
    command = [
        *(str(BIN / "ray"), "job", "submit", "--no-wait", "--address", address, "--submission-id", job),
        *("--working-dir", str(ROOT), "--", sys.executable, "jobs/outer_loop.py", "--config", config),
        *stored,
        *overrides,
    ]
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return job
        # A head that has just started answers before its node's agent can take jobs.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            raise SystemExit(f"ray job submit failed:\n{done.stdout}{done.stderr}")
        time.sleep(2)


def stop() -> None:
    state = running_cluster()
    if state is None:
        print("no local cluster is running")
        return
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(state["group"], kind)
        except ProcessLookupError:
            break
        time.sleep(3)
    STATE.unlink(missing_ok=True)
    print("the local cluster is stopped")


def ui(port: int = 5000) -> int:
    """MLflow's server on the local store's database, until interrupted."""
    chosen = free_port(port)
    print(f"MLflow  http://127.0.0.1:{chosen}   (Ctrl-C ends it)", flush=True)
    command = [str(BIN / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{STORE / 'mlflow.db'}"]
    command += ["--host", "127.0.0.1", "--port", str(chosen), "--workers", "1"]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--config", required=True)
    running.add_argument("overrides", nargs="*")
    commands.add_parser("ui")
    commands.add_parser("stop")
    arguments = parser.parse_args()
    if arguments.command == "run":
        return run(arguments.config, arguments.overrides)
    if arguments.command == "ui":
        return ui()
    stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
