"""Evaluates a bundle in memory on tasks that are loaded, mode by mode, and compares each with the base row by row."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as harness

from bs_cluster.errors import DataError
from bs_cluster.estimates import estimate
from bs_cluster.evaluation.model import BundleLM
from bs_cluster.evaluation.record import BASE, ROUTED, UNGATED, Evaluation, Score
from bs_cluster.evaluation.tasks import FEWSHOT_SEED
from bs_cluster.evaluation.trained_on import TrainedOn
from bs_cluster.records import BundleManifest
from bs_cluster.serving.runtime import BundleRuntime
from bs_cluster.store import Store

BOOTSTRAPS = 1000  # of lm-eval, for the error of what is no mean
EQUAL = 1e-9  # what two ways of taking a mean may differ by


@dataclass(frozen=True)
class Wanted:
    """``tasks`` holds those of each name that was asked for. With ``domains`` there is a fourth mode, of those at full
    strength. ``limit`` is how many rows of a task are used at most; with ``template`` its questions stand in the
    campaign's; ``batch_tokens`` are in memory at once."""

    tasks: Mapping[str, Sequence[Task]]
    domains: Sequence[str]
    limit: int | None
    template: bool
    batch_tokens: int


@dataclass(frozen=True)
class Measured:
    """A metric of a task as lm-eval gives it, over ``count`` rows; ``rows`` holds their values where it is the mean."""

    count: int
    value: float
    error: float | None
    rows: np.ndarray | None


Measurements = dict[str, dict[str, Measured]]  # task, metric


def evaluate(
    runtime: BundleRuntime,
    store: Store,
    bundle: BundleManifest,
    wanted: Wanted,
    say: Callable[[str], None],
) -> Evaluation:
    """A bundle, which ``runtime`` holds, on tasks. Raises DataError where the campaign was trained on all rows of
    one."""
    tasks = {task.task_name: task for group in wanted.tasks.values() for task in group}
    threshold = runtime.config.data.near_duplicates
    trained_on = TrainedOn(store, bundle, runtime.stacked.base.tokenizer, threshold)
    places = {name: trained_on.unseen(task, wanted.limit) for name, task in tasks.items()}
    for name, (unseen, seen) in places.items():
        if not unseen:
            raise DataError(f"task {name!r}: all {len(seen)} rows are like rows that the campaign was trained on")
    modes = {BASE: (), UNGATED: runtime.domains, ROUTED: None}
    if wanted.domains:
        modes["+".join(wanted.domains)] = wanted.domains
    found: dict[str, Measurements] = {}
    gates, seconds = {}, {}
    for mode, on in modes.items():
        say(f"{mode}: {', '.join(tasks)}")
        started, model = time.monotonic(), BundleLM(runtime, on, wanted.batch_tokens, say)
        _seed(tasks.values())
        chosen = {name: unseen for name, (unseen, _) in places.items()}
        given: Any = harness(
            model,
            {"tasks": tasks},
            samples=chosen,
            bootstrap_iters=BOOTSTRAPS,
            apply_chat_template=wanted.template,
        )
        found[mode] = {name: _measured(given["results"][name], given["samples"][name]) for name in tasks}
        seconds[mode] = time.monotonic() - started
        if mode == ROUTED:
            gates = {name: _mean_gates(model, task) for name, task in tasks.items()}
    return Evaluation(
        campaign=store.campaign,
        bundle=bundle.number,
        manifest=bundle.digest(),
        lm_eval=version("lm_eval"),
        limit=wanted.limit,
        template=runtime.config.data.template if wanted.template else None,
        rows={name: len(unseen) for name, (unseen, _) in places.items()},
        shots={name: int(task.get_config("num_fewshot")) for name, task in tasks.items()},
        scores=tuple(score for name, group in wanted.tasks.items() for score in _scores(name, group, found)),
        left_out={name: tuple(seen) for name, (_, seen) in places.items()},
        gates=gates,
        seconds=seconds,
    )


def _seed(tasks: Iterable[Task]) -> None:
    """Every mode is asked the same, with the same examples before it."""
    random.seed(0)
    for task in tasks:
        task.set_fewshot_seed(FEWSHOT_SEED)


def _measured(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Measured]:
    """By metric, which is named with its filter where it has one."""
    measured = {}
    for key, value in results.items():
        metric, comma, used = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{metric}_stderr,{used}")
        error = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
        rows = [sample.get(metric) for sample in samples if sample["filter"] == used]
        count = len(rows)
        means = all(isinstance(row, bool | int | float | np.number) for row in rows)
        if not (means and math.isclose(np.mean(rows), value, rel_tol=EQUAL, abs_tol=EQUAL)):  # type: ignore[arg-type]
            rows = None
        named = metric if used == "none" else f"{metric}, {used}"
        measured[named] = Measured(count, float(value), error, None if rows is None else np.array(rows, dtype=float))
    return measured


def _scores(name: str, group: Sequence[Task], found: Mapping[str, Measurements]) -> Iterator[Score]:
    """Of every task in every mode; of a group also over the rows of all its tasks."""
    for task in group:
        for metric, base in found[BASE][task.task_name].items():
            for mode, by_task in found.items():
                yield _score(task.task_name, metric, mode, by_task[task.task_name][metric], base)
    if len(group) > 1:
        of_all = [set(found[BASE][task.task_name]) for task in group]
        for metric in sorted(set.intersection(*of_all)):
            pooled = {
                mode: _pooled([by_task[task.task_name][metric] for task in group]) for mode, by_task in found.items()
            }
            for mode, measured in pooled.items():
                if measured is not None and (base := pooled[BASE]) is not None:
                    yield _score(name, metric, mode, measured, base)


def _pooled(parts: Sequence[Measured]) -> Measured | None:
    if any(part.rows is None for part in parts):
        return None
    rows = np.concatenate([part.rows for part in parts])  # type: ignore[arg-type]
    of_rows = estimate(rows, np.ones(len(rows)))
    return Measured(len(rows), of_rows.mean, of_rows.error if math.isfinite(of_rows.error) else None, rows)


def _score(task: str, metric: str, mode: str, measured: Measured, base: Measured) -> Score:
    less = None
    if mode != BASE and measured.rows is not None and base.rows is not None and len(base.rows) > 1:
        less = estimate(measured.rows - base.rows, np.ones(len(base.rows)))
    return Score(task, metric, mode, measured.count, measured.value, measured.error, less)


def _mean_gates(model: BundleLM, task: Task) -> dict[str, float]:
    """Of each domain, over the task's prompts."""
    prompts = {str(instance.args[0]) for instance in task.instances}
    mean_D = np.mean([model.routed_gates[prompt] for prompt in prompts], axis=0)
    return dict(zip(model.runtime.domains, mean_D.tolist(), strict=True))
