"""Which tasks are evaluated and where their rows come from: by lm-eval's definitions or one's own, online or of files.

A folder of files holds a task's rows as ``<task>.jsonl`` and, for a task of one's own, its definition as lm-eval's
YAML.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import datasets
import yaml
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from bs_cluster.config.sources import JsonlSource
from bs_cluster.data.readers import raw_rows
from bs_cluster.errors import DataError, UsageError

DEFINITIONS = Path(__file__).parent / "definitions"
PLAIN = DEFINITIONS / "choices.yaml"
PLAIN_COLUMNS = {"query", "choices", "gold"}
SCORED = ("multiple_choice", "loglikelihood", "generate_until")
FEWSHOT_SEED = 1234  # lm-eval's own


def load_tasks(names: Sequence[str], files: Path | None, shots: int | None) -> dict[str, list[Task]]:
    """The tasks that each name stands for: itself, or those of a group, with their rows. ``shots`` overrides the number
    of solved examples before a question, where a definition leaves it open.

    Raises UsageError for a name that nobody defines or a task that cannot be evaluated here, DataError where rows
    cannot be had.
    """
    if files is not None and not files.is_dir():
        raise UsageError(f"--files {files} is no folder; name the one that holds <task>.jsonl")
    if len(set(names)) < len(names):
        raise UsageError(f"--tasks {','.join(names)}: name each task once")
    own = TaskManager(include_path=[str(folder) for folder in (DEFINITIONS, files) if folder], include_defaults=False)
    specs = [_spec(name, files, own) for name in names]  # all names are looked up before any rows are read online
    found = {name: _load(name, *spec) for name, spec in zip(names, specs, strict=True)}
    for task in (task for tasks in found.values() for task in tasks):
        _check(task)
        if task.get_config("num_fewshot") is None or (shots is not None and task.get_config("num_fewshot") != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
    return found


@functools.cache
def _public() -> TaskManager:
    """lm-eval's own tasks: fourteen thousand files, five seconds of a core."""
    return TaskManager()


def _spec(name: str, files: Path | None, own: TaskManager) -> tuple[str | dict[str, Any], TaskManager]:
    """What is loaded, and who defines it: one's own definition is taken before lm-eval's of the same name."""
    rows = files / f"{name}.jsonl" if files else None
    manager = own if name in own.all_tasks else _public()
    if rows and rows.is_file() and name not in manager.all_tasks:
        return {**yaml.safe_load(PLAIN.read_text()), **_rows_of(rows, PLAIN_COLUMNS), "task": name}, manager
    if rows and rows.is_file() and name in manager.all_subtasks:
        return {"group": f"{name} of files", "task": [{"task": name, **_rows_of(rows)}]}, manager
    if name in manager.all_tasks:
        return name, manager
    near = difflib.get_close_matches(name, [*own.all_tasks, *manager.all_tasks], n=3)
    told = f"did you mean {', '.join(near)}?" if near else "lm-eval ls tasks prints lm-eval's."
    where = f" and there is no {rows}" if rows else ""
    raise UsageError(
        f"no task is called {name!r}{where}; {told} Rows of your own are {name}.jsonl in the folder of --files"
    )


def _rows_of(path: Path, wanted: Set[str] = frozenset()) -> dict[str, Any]:
    """Settings of a task that make the rows of a file its only ones."""
    rows = [dict(row) for row in raw_rows(JsonlSource(kind="jsonl", path=str(path)), 0)]
    if not rows:
        raise DataError(f"{path} holds no row")
    if lacking := sorted(wanted - set(rows[0])):
        raise DataError(
            f"{path}: a row lacks {', '.join(lacking)}; rows of a task that lm-eval does not know have query, choices "
            f"and gold, or a definition of their own beside them, {path.with_suffix('.yaml').name}"
        )
    held = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
    unused = dict.fromkeys(("training_split", "validation_split", "fewshot_split", "dataset_path", "dataset_name"))
    return {"custom_dataset": lambda **_: held, "test_split": "test", **unused}


def _load(name: str, spec: str | dict[str, Any], manager: TaskManager) -> list[Task]:
    try:
        return list(manager.load([spec])["tasks"].values())
    except ImportError as error:
        raise UsageError(f"task {name!r} needs a package that is not installed: {error}") from error
    except Exception as error:  # whatever datasets, the Hub's client or a task's own code makes of it
        raise DataError(
            f"task {name!r}: its rows cannot be read ({str(error) or type(error).__name__}); without a network, give "
            f"them as {name}.jsonl in --files FOLDER"
        ) from error


def _check(task: Task) -> None:
    """Raises UsageError for a task that cannot be evaluated here, and says why."""
    why = None
    if task.OUTPUT_TYPE not in SCORED:
        why = f"asks for {task.OUTPUT_TYPE}, and a text without a prompt cannot be routed"
    elif getattr(task, "UNSAFE_CODE", False):
        why = "runs the code that a model writes"
    elif getattr(task, "MULTIMODAL", False):
        why = "shows pictures or plays sounds"
    elif (task.get_config("generation_kwargs") or {}).get("do_sample"):
        why = "samples its answers; answers here are greedy"
    if why:
        raise UsageError(f"task {task.task_name!r} cannot be evaluated: it {why}. Leave it out")
