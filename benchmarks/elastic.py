"""How much of its time a training run trains whose machines come and go: a real job on a real cluster of two nodes.

    python -m benchmarks.elastic --minutes 15 --every 180

One domain on the embedded SmolLM2, a round that never ends, two workers of a CPU each, beside a head that has none.
Every so often one of three things happens, in turn and to whom chance says: a worker process is killed; a node is
killed, with whatever is on it; a node comes back. Nothing is announced: a notice would lose no step.

Effective training time is what went into steps that were kept, over the time from the first step to the end. A step
that was made after the checkpoint that a new group of workers went on from was made in vain. Of each loss, seconds from
it to the next step.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml
from ray.cluster_utils import Cluster

from benchmarks.__main__ import machine_name
from benchmarks.table import Table, Target
from bs_cluster.quiet import quieten

ROOT = Path(__file__).resolve().parents[1]
KEPT_SHARE, FIRST_STEP_S = 0.8, 60.0
STEP = re.compile(r"aa_r1 +step +(\d+)/")
BEGINS = re.compile(r"aa_r1 +training begins()")  # with every group, which may go on from a checkpoint then
RESUMED = re.compile(r"goes on after step (\d+), from its checkpoint")
SETTINGS: dict[str, Any] = {
    "campaign": "elastic",
    "base": {"model": "embedded:smollm2-135m", "cache_dequantized": True},
    "data": {"template": "plain", "max_length": 96, "max_prompt_length": 64, "train_rows": 400, "validation_rows": 8},
    "domains": [{"name": "aa", "sources": [{"kind": "embedded", "name": "chat"}]}],
    "stack": {"rank": 8},
    "training": {
        "num_workers": 2,
        "min_workers": 1,
        "resize_every_s": 5,
        "use_gpu": False,
        "cpus_per_worker": 1,
        "threads_per_worker": 1,
        "steps": 100_000,
        "global_batch": 8,
        "per_device_batch": 4,
        "noise": False,
        "eval_every": 100_000,
        "checkpoint_every_s": 20,
        "max_failures": 1000,
    },
    "sweep": {"evaluators": 1, "cpus_per_evaluator": 1, "gpus_per_evaluator": 0},
}


@dataclass(frozen=True)
class Seen:
    """A line of the job's log about steps, and when it was read: a step was made, or a new group goes on after one,
    or from the beginning (0)."""

    at: float
    step: int
    resumed: bool


@dataclass(frozen=True)
class Told:
    """``kept_s`` seconds went into steps that counted, of ``whole_s`` from the first step to the end; ``lost`` steps
    were made in vain. ``first_steps`` are the seconds from each loss to the first step of who went on."""

    kept_s: float
    whole_s: float
    lost: int
    first_steps: tuple[float, ...]


def told(seen: Sequence[Seen], losses: Sequence[float], ended: float) -> Told:
    """What a log says of the time until ``ended``. A stretch is what one group of workers made; of it counts what the
    next did not make again."""
    stretches: list[list[Seen]] = [[]]
    begins = [0]
    for one in seen:
        if one.resumed and stretches[-1]:
            stretches.append([])
            begins.append(one.step)
        elif one.resumed:
            begins[-1] = one.step
        else:
            stretches[-1].append(one)
    kept, lost = 0.0, 0
    for number, stretch in enumerate(stretches):
        if len(stretch) < 2:
            continue
        first, last = stretch[0], stretch[-1]
        end = begins[number + 1] if number + 1 < len(stretches) else last.step
        counted = max(0, min(end, last.step) - first.step)
        lost += last.step - first.step - counted
        kept += (last.at - first.at) * counted / max(1, last.step - first.step)

    def recovered(loss: float) -> float:
        """Seconds to the first step that the group after it made; for ever if there was none."""
        resumed = next((one.at for one in seen if one.resumed and one.at > loss), math.inf)
        return next((one.at for one in seen if not one.resumed and one.at > resumed), math.inf) - loss

    first = next(one.at for one in seen if not one.resumed)
    return Told(kept, ended - first, lost, tuple(recovered(loss) for loss in losses))


class Job:
    """The job, and what of its log is about steps."""

    def __init__(self, config: Path, log: Path, address: str):
        self.log, self.seen, self._read = log, list[Seen](), 0
        command = [sys.executable, str(ROOT / "jobs/outer_loop.py"), "--config", str(config)]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "RAY_ADDRESS": address}
            )

    def look(self) -> None:
        """Reads what is new. Raises RuntimeError if the job has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the job ended:\n{self.log.read_text()[-2000:]}")
        with self.log.open() as file:
            file.seek(self._read)
            for line in file:
                if match := STEP.search(line) or RESUMED.search(line) or BEGINS.search(line):
                    self.seen.append(Seen(time.monotonic(), int(match[1] or 0), not STEP.search(line)))
            self._read = file.tell()

    def watch(self, until: float) -> None:
        while time.monotonic() < until:
            self.look()
            time.sleep(0.2)

    def first_steps(self, patience_s: float) -> None:
        """Waits until it has made two. Raises RuntimeError if it takes longer."""
        until = time.monotonic() + patience_s
        while sum(not one.resumed for one in self.seen) < 2:
            if time.monotonic() > until:
                raise RuntimeError(f"no step within {patience_s:.0f} s:\n{self.log.read_text()[-2000:]}")
            self.look()
            time.sleep(0.2)

    def workers(self) -> list[psutil.Process]:
        """Of this process' own cluster."""
        return [one for one in psutil.Process().children(recursive=True) if "ray::RayTrainWorker" in _title(one)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def disturbed(job: Job, cluster: Cluster, nodes: list[Any], draw: random.Random) -> Iterator[str]:
    """What happens, one after another; it has happened when it is told."""
    while True:
        while not (workers := job.workers()):
            time.sleep(0.2)
        draw.choice(workers).kill()
        yield "a worker was killed"
        node = nodes.pop(draw.randrange(len(nodes)))
        cluster.remove_node(node, allow_graceful=False)
        yield "a node was killed"
        nodes.append(cluster.add_node(num_cpus=1))
        yield "a node came"


def run(minutes: float, every_s: float, seed: int) -> tuple[Told, list[str]]:
    """Trains for so long and is disturbed every so often. What happened, too."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        with TemporaryDirectory() as folder:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            config = Path(folder) / "elastic.yaml"
            config.write_text(yaml.safe_dump({**SETTINGS, "store": {"uri": f"{folder}/store"}}, sort_keys=False))
            job = Job(config, Path(folder) / "log", cluster.address)
            try:
                return _disturbed(job, disturbed(job, cluster, nodes, random.Random(seed)), minutes, every_s)
            finally:
                job.process.kill()
    finally:
        cluster.shutdown()


def _disturbed(job: Job, happens: Iterator[str], minutes: float, every_s: float) -> tuple[Told, list[str]]:
    job.first_steps(600)
    began = time.monotonic()
    losses, story = [], []
    while time.monotonic() < began + 60 * minutes - every_s:
        job.watch(time.monotonic() + every_s)
        what = next(happens)
        job.look()
        struck = time.monotonic()
        story.append(f"{struck - began:.0f} s: {what}")
        print(story[-1], file=sys.stderr, flush=True)
        if "killed" in what:
            losses.append(struck)
    job.watch(began + 60 * minutes)
    return told(job.seen, losses, time.monotonic()), story


def table(found: Told, story: Sequence[str]) -> Table:
    share = found.kept_s / found.whole_s
    shown = Table(
        "Training while machines come and go",
        (
            "seconds from the first step",
            "in steps that counted",
            "share",
            "steps made twice",
            "from a loss to a step, s",
        ),
        [(found.whole_s, found.kept_s, share, found.lost, ", ".join(f"{one:.0f}" for one in found.first_steps))],
        note=f"{machine_name()}. {'; '.join(story)}.",
    )
    shown.targets = [
        Target("share of its time in steps that counted", share, KEPT_SHARE, at_least=True),
        Target("longest from a loss to a step, s", max(found.first_steps, default=0.0), FIRST_STEP_S),
    ]
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elastic", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--every", type=float, default=180, metavar="S", help="seconds between what happens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    quieten()
    print(table(*run(arguments.minutes, arguments.every, arguments.seed)).markdown())


if __name__ == "__main__":
    main()
