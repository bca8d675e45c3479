"""A Ray cluster on this machine for ``make run``: start or find it, submit the campaign, follow it, stop it.

    python cluster/local.py run --config jobs/configs/embedded.yaml [key=value …]
    python cluster/local.py env       # what a shell needs to speak to it: eval "$(python cluster/local.py env)"
    python cluster/local.py ui        # MLflow in a browser
    python cluster/local.py stop      # ends what this file started, and nothing else

It listens on loopback alone and answers only who has its token, a file of mode 0600 beside the store. ``BS_STORE``
names another store than the checkout's. The head runs as one process group whose id is kept in a file: ``ray stop``
would end every Ray of the host.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORE = Path(os.environ.get("BS_STORE", ROOT / "stacks_store"))
STATE = STORE / ".local-cluster.json"
TOKEN = STORE / ".local-cluster-token"
LOG = STORE / ".local-cluster.log"
# A folder of its own: a job looks there for the cluster that it is of, and in one for all that is whichever started
# last. Short, since a path to one of Ray's sockets has 107 characters at most; of this user, who may be one of several.
TEMP = f"/tmp/ray-{os.getuid()}-{hashlib.sha256(str(STORE.absolute()).encode()).hexdigest()[:8]}"
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60

# Every process that speaks to the cluster, and every one that it starts, has these.
ENVIRONMENT = {
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # a job's `python` and `ray` are this project's
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": str(TOKEN),
    # Ray replaces 127.0.0.1 by an address that others reach, but for clusters of one node: its default on other
    # systems, and what makes every socket of it listen on loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",  # and what workers send one another
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT_S),  # a stopped driver tells MLflow so
    "RAY_USAGE_STATS_ENABLED": "0",
}
os.environ |= ENVIRONMENT  # before Ray is imported, which reads them once
os.environ.pop("RAY_AUTH_TOKEN", None)  # would go before the file
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402  # after the environment is set, as all of these
from ray.exceptions import AuthenticationError  # noqa: E402
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient  # noqa: E402

from bs_cluster.config.identity import config_digest  # noqa: E402
from bs_cluster.config.parse import load_config  # noqa: E402
from bs_cluster.config.schema import CampaignConfig  # noqa: E402
from bs_cluster.errors import ConfigError, DataError  # noqa: E402

logging.disable(logging.WARNING)  # the client's own lines on what it packs; what is to be known is printed

RUNNING = {JobStatus.PENDING, JobStatus.RUNNING}
RAYS_OWN = re.compile(r"Runtime env is setting up\.|^Running entrypoint for job ")


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
    """A head node with all CPUs of this machine (at least two), on loopback, with a token of its own."""
    STORE.mkdir(parents=True, exist_ok=True)
    TOKEN.unlink(missing_ok=True)
    with os.fdopen(os.open(TOKEN, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    # Another Ray may be at home on the usual ports, or take one after it was found free: then any will do.
    for usual in ((6379, 8265), (0, 0)):
        state = start_head(*(free_port(port) for port in usual))
        if state is not None:
            return state
    TOKEN.unlink()
    raise SystemExit(f"Ray did not start, twice, each time within {START_TIMEOUT_S} s; its log is {LOG}")


def start_head(port: int, dashboard: int) -> dict[str, Any] | None:
    """Starts the head; None, with all of it ended, where it did not come to answer at its dashboard's port."""
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}", f"--num-cpus={max(2, os.cpu_count() or 2)}"),
        # An agent whose port is taken serves on without one, and its node can take no job: it chooses itself.
        *("--dashboard-agent-listen-port=0", f"--object-store-memory={1 << 30}", f"--temp-dir={TEMP}"),
    ]
    with LOG.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd="/")
    state = {"group": process.pid, "address": f"http://127.0.0.1:{dashboard}"}
    STATE.write_text(json.dumps(state))
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            JobSubmissionClient(state["address"]).list_jobs()
        except AuthenticationError:  # another cluster's dashboard: it has another token
            break
        except (ConnectionError, RuntimeError):  # not up yet
            time.sleep(0.5)
        else:
            if listens(process.pid, dashboard):
                return state
            break  # another cluster's dashboard: it asks for no token
    end_group(process.pid)
    STATE.unlink()
    return None


def listens(group: int, port: int) -> bool:
    """Whether a process of the ``group`` listens on the ``port``."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and any(
                connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
                for connection in process.net_connections("inet")
            ):
                return True
    return False


def end_group(group: int) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, kind)
        except ProcessLookupError:
            return
        time.sleep(3)


def run(path: str, overrides: list[str]) -> int:
    """Submits the campaign and follows it to its end. The same one under way is followed instead; beside another one
    nothing is started. Exit codes as of the job, 130 when interrupted."""
    if not any(override.startswith("store.uri=") for override in overrides):
        overrides = [f"store.uri={STORE}", *overrides]
    try:
        config = load_config(path, overrides)  # refused before anything is started
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    found = running_cluster()
    state = found or start_cluster()
    print(f"Ray dashboard  {state['address']}{'  (already running)' if found else ''}", flush=True)
    client = JobSubmissionClient(state["address"])
    under_way = next((job for job in client.list_jobs() if job.status in RUNNING and job.submission_id), None)
    wanted = {"campaign": config.campaign, "config": config_digest(config)[:12]}
    if under_way is None:
        job = submit(client, config, wanted, path, overrides)
    elif under_way.metadata == wanted:
        job = str(under_way.submission_id)
        print(f"following {job}, which is under way with this very config; `make stop` ends it", flush=True)
    else:
        print(f"{told(under_way)} is under way, with another config than this one.", file=sys.stderr)
        print("Wait for it, or end it (`make stop`; its own command goes on with it later).", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = follow(client, job)
    except KeyboardInterrupt:
        print("\nstopping the job; run the same command to go on", flush=True)
        end_job(client, job)
        return 130
    except (OSError, RuntimeError):  # requests has connection errors of its own, of several lines
        print(f"the local cluster does not answer any more; its log is {LOG}", file=sys.stderr)
        return 1
    if status != JobStatus.SUCCEEDED:
        code = client.get_job_info(job).driver_exit_code
        print(f"job {job}: {status}", file=sys.stderr)
        return code if code and 0 < code < 128 else 1
    print(f"  in a browser         make ui (MLflow), {state['address']} (Ray); `make stop` ends the local cluster")
    return 0


def told(job: JobDetails) -> str:
    return f"job {job.submission_id} of campaign {(job.metadata or {}).get('campaign', 'unknown')}"


def submit(
    client: JobSubmissionClient, config: CampaignConfig, metadata: dict[str, str], path: str, overrides: list[str]
) -> str:
    """Submits the job; returns its id. ``metadata`` is shown in Ray's dashboard, and tells whose job this is."""
    job = f"{config.campaign}-{time.strftime('%Y%m%d-%H%M%S')}"
    entry = shlex.join(["python", "jobs/outer_loop.py", "--config", path, *overrides])
    runtime = {"working_dir": str(ROOT), "env_vars": job_environment()}
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return client.submit_job(entrypoint=entry, submission_id=job, runtime_env=runtime, metadata=metadata)
        except RuntimeError as error:
            # A head that has just started answers before its node's agent can take jobs.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise SystemExit(f"the job was not taken: {error}") from error
            time.sleep(2)


def job_environment() -> dict[str, str]:
    """A job's log is a file, whoever reads it: no escape codes, and lines as wide as the terminal that follows it."""
    columns = {"COLUMNS": str(shutil.get_terminal_size().columns)} if sys.stdout.isatty() else {}
    return {"NO_COLOR": "1", **columns}


def follow(client: JobSubmissionClient, job: str) -> JobStatus:
    """Prints what the job says until it ends; returns how it did. A broken connection is taken up where it was."""
    lines = Lines()
    while True:
        with contextlib.suppress(RuntimeError, OSError):
            asyncio.run(lines.print_all(client.tail_job_logs(job)))
        status = client.get_job_status(job)
        if status.is_terminal():
            lines.end()
            return status
        time.sleep(1)


class Lines:
    """Prints whole lines as they come, less Ray's own."""

    def __init__(self) -> None:
        self.printed, self.rest = 0, ""

    async def print_all(self, log: AsyncIterator[str]) -> None:
        """``log`` comes from its beginning each time; what was printed already is passed over."""
        read = 0
        async for text in log:
            self._add(text[max(0, self.printed - read) :])
            read += len(text)
            self.printed = max(self.printed, read)

    def end(self) -> None:
        if self.rest:
            self._add("\n")

    def _add(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if not RAYS_OWN.search(line):
                print(line, flush=True)


def end_job(client: JobSubmissionClient, job: str) -> None:
    """Stops a job and waits until it has told MLflow so."""
    client.stop_job(job)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)


def stop() -> None:
    state = running_cluster()
    if state is None:
        print("no local cluster is running")
        return
    try:
        client = JobSubmissionClient(state["address"])
        for job in client.list_jobs():
            if job.status in RUNNING and job.submission_id:
                print(f"stopping {told(job)}; its command goes on with it", flush=True)
                end_job(client, job.submission_id)
    except (ConnectionError, RuntimeError):  # a head that does not answer is ended all the same
        pass
    end_group(state["group"])
    STATE.unlink(missing_ok=True)
    TOKEN.unlink(missing_ok=True)
    print("the local cluster is stopped")


def environment() -> int:
    """What a shell needs for `ray job submit` and `ray status`, to be evaluated."""
    state = running_cluster()
    if state is None:
        print("no local cluster is running; `make run` starts one", file=sys.stderr)
        return 1
    for name, value in {**ENVIRONMENT, "RAY_ADDRESS": state["address"]}.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


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
    for name in ("env", "ui", "stop"):
        commands.add_parser(name)
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            return run(arguments.config, arguments.overrides)
        case "env":
            return environment()
        case "ui":
            return ui()
        case _:
            stop()
            return 0


if __name__ == "__main__":
    sys.exit(main())
