"""Trials of kind ``processes``: one process of a running campaign is killed, or stopped for some seconds, at a moment
drawn by chance; then the same command again, as often as it says so. Each has a Ray of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import job
import psutil

from bs_cluster.registry.database import ensure_database
from bs_cluster.store import Store
from chaos.campaign import tiny_settings
from chaos.record import Result, here
from chaos.remains import Remains, compare, remains
from chaos.trials import Trial

STOPPED_S = 8.0
PATIENCE_S = 240.0  # from the blow to the end of the command, whatever the end
SILENCE_S = 60.0
# How long after the workers, or the evaluators, begin to load a blow may come: to a process that is there in one phase
# alone, and to any other, as a share of what the undisturbed campaign takes from there on.
IN_TRAINING_S = 6.0
WHENEVER = 0.8
OF_A_PHASE = ("worker", "coordinator", "controller", "evaluator")
RERUNS = 3
TIME = re.compile(r"^\[(\d+):(\d+)\] ", flags=re.M)
STEP = re.compile(r"^\[(\d+):(\d+)\] \w+_r\d+ +step ", flags=re.M)
TITLES = {
    "worker": "ray::RayTrainWorker",
    "coordinator": "ray::Coordinator",
    "evaluator": "ray::Evaluator",
    "controller": "ray::TrainController",
    "raylet": "raylet",
    "gcs": "gcs_server",
}


@dataclass
class Served:
    """A campaign whose MLflow is a server of its own."""

    folder: Path
    template: Path

    def __post_init__(self) -> None:
        self.port = job.free_port()
        self.store, self.database = Store(str(self.folder / "store"), "tiny"), self.folder / "mlflow.db"
        self.config = self.folder / "tiny.yaml"
        self.server: subprocess.Popen | None = None

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        ensure_database(self.database, print)
        wanted = tiny_settings(self.template, self.folder / "store")
        wanted["registry"] = {"tracking_uri": f"http://127.0.0.1:{self.port}"}
        job.write_config(self.config, wanted)

    def serve(self) -> None:
        """MLflow's server, unless it stands."""
        if self.server is not None and self.server.poll() is None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "mlflow.log").open("ab") as log:
            self.server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def end(self) -> None:
        if self.server is not None and self.server.poll() is None:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()


class Processes:
    """The arena of these trials."""

    def __init__(self, template: Path, folder: Path):
        self.folder = folder
        self.campaign = Served(folder / "campaign", template)
        self.control = self._undisturbed()

    def _undisturbed(self) -> Remains:
        self.campaign.begin()
        self.campaign.serve()
        try:
            done = job.run(self.campaign.config)
            assert done.code == 0, f"{done.out}\n{done.err}"
        finally:
            self.campaign.end()
        loaded = done.out.rindex("\n", 0, done.out.index("loads"))
        self.whenever_s = WHENEVER * (_at(done.out, -1) - _at(done.out[loaded:], 0))
        return remains(self.campaign.store, self.campaign.database)

    def hold(self, trial: Trial) -> Result:
        started, draw = time.monotonic(), random.Random(trial.name)
        campaign, logs = self.campaign, self.folder / trial.name.replace(": ", "-")
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        campaign.begin()
        campaign.serve()
        wrong: dict[str, list[str]] = {}
        try:
            running = job.Running(campaign.config, logs / "log")
            started_by = set(running.children())
            after_s = draw.uniform(0, IN_TRAINING_S if trial.place in OF_A_PHASE else self.whenever_s)
            struck = _strike(running, campaign, trial, after_s, started_by)
            how, first_step_s = _end(running, started_by, wrong)
            again = ""
            for number in range(RERUNS):
                campaign.serve()
                try:
                    later = job.run(campaign.config)
                except subprocess.TimeoutExpired as error:
                    again = f"no end within {error.timeout:.0f} s"
                    break
                (logs / f"again-{number}.log").write_text(later.out + later.err)
                again = "done" if later.code == 0 else "told"
                first_step_s = first_step_s or _first_step(later.out)
                if again == "done":
                    break
                time.sleep(5)
        finally:
            campaign.end()
        before, after = (logs / "log").read_text(), "".join(path.read_text() for path in logs.glob("again-*.log"))
        if again != "done":
            wrong["stuck"] = [*wrong.get("stuck", []), f"the same command fails {RERUNS} times: {after[-1500:]}"]
        else:
            found = compare(remains(campaign.store, campaign.database), self.control)
            wrong |= {kind: told for kind, told in vars(found).items() if told}
        if "Traceback (most recent call last)" in before + after:
            place = (before + after).index("Traceback (most recent call last)")
            wrong["raw"] = [(before + after)[max(0, place - 200) : place + 2000]]
        if wrong:
            campaign.folder.rename(logs / "campaign")
        else:
            shutil.rmtree(logs)
        return Result(
            trial,
            struck=struck,
            ended=how,
            again=again,
            seconds=round(time.monotonic() - started, 1),
            **here(),
            wrong=wrong,
            first_step_s=first_step_s,
            steps_lost=_steps_lost(before + after),
        )


def _at(log: str, which: int) -> int:
    """The second of a command's time at which it wrote its first (0) or last (-1) line."""
    minutes, seconds = TIME.findall(log)[which]
    return 60 * int(minutes) + int(seconds)


def _strike(running: job.Running, campaign: Served, trial: Trial, after_s: float, started: set[psutil.Process]) -> bool:
    """Waits for the moment, then strikes; False where the campaign was over before. Adds to what the job has
    started."""
    shown = running.log.read_text
    what = "evaluators load" if trial.place == "evaluator" else "loads"
    try:
        running.wait_until(what, lambda: what in shown())
        time.sleep(after_s)
        running.wait_until(trial.place, lambda: bool(_targets(running, campaign, trial.place)))
    except AssertionError:
        return False
    started |= set(running.children())
    targets = _targets(running, campaign, trial.place)
    for target in targets:
        target.kill() if trial.fault == "kill" else target.suspend()
    if trial.fault == "stop":
        time.sleep(STOPPED_S)
        for target in targets:
            with contextlib.suppress(psutil.NoSuchProcess):  # its parent has given it up
                target.resume()
    return bool(targets)


def _targets(running: job.Running, campaign: Served, place: str) -> list[psutil.Process]:
    if place == "driver":
        return [psutil.Process(running.process.pid)]
    if place == "mlflow":
        assert campaign.server is not None
        server = psutil.Process(campaign.server.pid)
        return [*server.children(recursive=True), server]
    held = TITLES[place]
    return [child for child in running.children() if held in _name(child)][:1]


def _name(process: psutil.Process) -> str:
    try:
        title = process.cmdline()[:1]
    except psutil.Error:
        return ""
    return Path(title[0]).name if title and not title[0].startswith("ray::") else "".join(title)


def _end(running: job.Running, started: set[psutil.Process], wrong: dict[str, list[str]]) -> tuple[str, float | None]:
    """How the command ended by itself, or that it had to be ended, and the seconds to its next step, where it made one
    after the blow; nothing of its Ray is left behind."""
    struck = time.monotonic()
    deadline = struck + PATIENCE_S
    at_blow, first_step_s = running.log.stat().st_size, None
    size, since = 0, struck
    how = ""
    while running.process.poll() is None and not how:
        if (now := running.log.stat().st_size) != size:
            size, since = now, time.monotonic()
            later = running.log.read_bytes()[at_blow:].decode(errors="replace")
            if first_step_s is None and STEP.search(later):
                first_step_s = round(since - struck, 1)
        if time.monotonic() - since > SILENCE_S:
            wrong["stuck"] = [f"silent for {SILENCE_S:.0f} s: {running.log.read_text()[-600:]}"]
            how = "silent"
        if time.monotonic() > deadline:
            wrong["stuck"] = [f"no end within {PATIENCE_S:.0f} s: {running.log.read_text()[-600:]}"]
            how = "stuck"
        started |= set(running.children())
        time.sleep(0.2)
    if how:
        running.process.kill()
    code = running.process.wait()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    return how or ("done" if code == 0 else "killed" if code < 0 else "told"), first_step_s


def _first_step(out: str) -> float | None:
    """Seconds from a command's start to its first step, by its own clock."""
    match = STEP.search(out)
    return 60.0 * int(match[1]) + int(match[2]) if match else None


def _steps_lost(log: str) -> int | None:
    """Steps that were said to be made and were made again, where a round was begun twice."""
    lost = 0
    for match in re.finditer(r"(\w+_r\d+) +goes on after step (\d+)", log):
        said = [int(step) for step in re.findall(rf"{match[1]} +step +(\d+)/", log[: match.start()])]
        lost += max(0, max(said, default=0) - int(match[2]))
    return lost
