"""An evaluation as tables, and its files beside the campaign's report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from bs_cluster.evaluation.record import BASE, Evaluation, Score
from bs_cluster.report.markdown import table
from bs_cluster.report.wording import duration, interval, signed

JSON, PAGE, REPORT = "evaluation.json", "evaluation.md", "report.md"
HEADING = "## Public tasks"


def header(found: Evaluation) -> list[str]:
    return ["task", "metric", "rows", *found.modes, *(f"{mode} − base" for mode in found.modes if mode != BASE)]


def lines(found: Evaluation) -> list[list[object]]:
    """A line for each metric of each task: values with standard errors, then paired differences with intervals."""
    by_line: dict[tuple[str, str], dict[str, Score]] = {}
    for score in found.scores:
        by_line.setdefault((score.task, score.metric), {})[score.mode] = score
    return [
        [
            task,
            metric,
            scores[BASE].rows,
            *(_value(scores[mode]) for mode in found.modes),
            *(_less_base(scores[mode]) for mode in found.modes if mode != BASE),
        ]
        for (task, metric), scores in by_line.items()
    ]


def notes(found: Evaluation) -> list[str]:
    """What the table does not say."""
    asked = sum(found.rows.values())
    per_row = ", ".join(f"{mode} {seconds / asked:.2f} s" for mode, seconds in found.seconds.items())
    told = [
        "± is a standard error; differences are paired by row, with 95 % intervals",
        *(f"mean gates on {task}: {_gates(gates)}" for task, gates in found.gates.items()),
        *(
            f"{task}: {len(places)} {'row' if len(places) == 1 else 'rows'} left out, like rows that the campaign was "
            "trained on"
            for task, places in found.left_out.items()
            if places
        ),
        *(f"{task}: {count} solved examples before each question" for task, count in found.shots.items() if count),
        f"{duration(sum(found.seconds.values()))}; a row takes {per_row}; {_asked(found)}; lm-eval {found.lm_eval}",
    ]
    return told


def write_page(found: Evaluation, folder: Path) -> None:
    """Writes both files and shows the page at the end of the report, in place of an earlier one."""
    page = "\n\n".join(
        [
            HEADING,
            f"Bundle {found.bundle} of {found.campaign} by lm-evaluation-harness, {_asked(found)}.",
            table(header(found), lines(found)),
            "\n".join(f"- {note}" for note in notes(found)),
        ]
    )
    _write(folder / JSON, json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n")
    _write(folder / PAGE, page + "\n")
    if (folder / REPORT).is_file():
        report = (folder / REPORT).read_text(encoding="utf-8").partition(HEADING)[0].rstrip()
        _write(folder / REPORT, f"{report}\n\n{page}\n")


def _write(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)


def _asked(found: Evaluation) -> str:
    return f"in the template {found.template}" if found.template else "asked as the tasks have it"


def _gates(gates: Mapping[str, float]) -> str:
    return ", ".join(f"{domain} {weight:.2f}" for domain, weight in gates.items())


def _value(score: Score) -> str:
    return f"{score.value:.3f}" + ("" if score.error is None else f" ± {score.error:.3f}")


def _less_base(score: Score) -> str:
    less = score.less_base
    return f"{signed(less and less.mean)} {interval(less)}" if less else "–"
