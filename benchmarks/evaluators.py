"""How evaluators add up: the product's sweep on Ray, with one actor and with two."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from transformers import AutoConfig

from benchmarks.settings import Settings
from benchmarks.sweep import BATCH_TOKENS, RandomEvaluator, prompts
from benchmarks.table import Table, Target
from bs_cluster.base.prepare import prepare_base
from bs_cluster.config.schema import BaseSection, SweepSection
from bs_cluster.store import SweepArea
from bs_cluster.store.filesystem import LocalFiles
from bs_cluster.sweep.sweep import run_sweep

DOMAINS, PROMPTS = 5, 12


def measure(settings: Settings) -> list[Table]:
    domains = [f"domain{d}" for d in range(DOMAINS)]
    table = Table(
        f"Evaluators on Ray, D = {DOMAINS}: {settings.base}",
        ("evaluators", "prompts/s", "× one evaluator"),
        note="One thread each; loading not counted." if settings.device == "cpu" else "One GPU each.",
    )
    speeds: dict[int, float] = {}
    with local_ray():
        actor = ray.remote(RandomEvaluator)
        options = {"num_cpus": 1} if settings.device == "cpu" else {"num_gpus": 1}
        for count in (1, 2):
            if count * options.get("num_gpus", 0) > ray.cluster_resources().get("GPU", 0):
                continue
            start = actor.options(**options).remote
            evaluators = [start(settings.base, settings.device, domains, 1) for _ in range(count)]
            rows = prompts(_vocabulary(settings), PROMPTS)
            ray.get([evaluator.score.remote(rows[:4], [[1.0] * DOMAINS] * 4) for evaluator in evaluators])
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                area = SweepArea(LocalFiles(Path(folder)), "sweep")
                sweep = SweepSection(batch_tokens=BATCH_TOKENS)
                list(run_sweep(evaluators, rows, domains, sweep, area, lambda *_: None))
                speeds[count] = len(rows) / (time.perf_counter() - started)
            for evaluator in evaluators:
                ray.kill(evaluator)
    table.rows = [(count, speed, speed / speeds[1]) for count, speed in speeds.items()]
    if 2 in speeds:
        table.targets = [Target("two evaluators / one", speeds[2] / speeds[1], 1.8, at_least=True)]
    return [table]


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def _vocabulary(settings: Settings) -> int:
    return AutoConfig.from_pretrained(prepare_base(BaseSection(model=settings.base))).get_text_config().vocab_size
