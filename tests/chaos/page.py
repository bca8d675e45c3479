"""docs/CHAOS.md, from the results."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from bs_cluster.failpoints import FAULTS
from chaos.record import Result, Results
from chaos.trials import KINDS, SIGNALS, Trial

WRONG = {
    "lost": "a ref of the control is not there",
    "doubled": "a ref, a run, a point, a version or a model is there twice",
    "torn": "an object is not whole, or something is left over",
    "differs": "a ref's content, a report's number or what MLflow shows is another",
    "raw": "a Python traceback where words are due",
    "stuck": "no end, no word, or the same command fails",
}
TOLD = {
    "commit": "four stacks, two closings and a bundle by coordinator, store, recorder and MLflow on sqlite; no model",
    "round": "training of a tiny Gemma 3 in NF4 on two gloo ranks, two domains, checkpoints after each step",
    "aligned": "the same with a dpo round after the first domain's and a grpo round after the second's",
    "measure": "the whole command on a Ray cluster, from where training has ended: sweep, router, report, bundle",
    "campaign": "the whole command on a Ray cluster, from the first step",
    "processes": "the whole command with Ray and MLflow of its own; one process killed, or stopped for eight seconds",
}
INTRO = """\
Written by `make chaos` on {when} ({machines}). It goes on where it was interrupted; the trials are lines of
`tests/chaos/results.jsonl`.

A trial strikes a campaign once. At a named failpoint (`bs_cluster/failpoints.py`) the process that gets there is
killed, is told that the disk is full (`enospc`) or broken (`eio`), hangs until somebody kills it, or is three seconds
late; or a process is killed or stopped at a moment drawn by chance. Then the same command is run again, and what it
leaves is held against an undisturbed campaign: every ref, the order of commits, the manifests' digests (CPU, fp32, as
many workers: bit for bit), every run, point, version, alias and model of MLflow, every number of the report but times.
What was committed is hashed again; after a collection of garbage nothing may be left over."""


def page(results: Results, planned: Sequence[Trial]) -> str:
    counted = [result for result in results.of.values() if result.struck]
    never = [result.trial.name for result in results.of.values() if not result.struck]
    open_ = [trial for trial in planned if trial not in results.of]
    machines = sorted({result.machine for result in counted})
    dates = sorted({result.date for result in counted})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    parts = [
        "# What was done to it, and what was lost",
        INTRO.format(when=when, machines="; ".join(machines)),
        f"**{len(counted)} trials: " + ", ".join(f"{_many(counted, kind)} {kind}" for kind in WRONG) + ".**",
        _table(
            ["kind", "what is struck", "trials", *WRONG, "median s"],
            [
                [kind, TOLD[kind], len(own), *(_many(own, wrong) for wrong in WRONG), f"{_median(own):.1f}"]
                for kind in KINDS
                if (own := [result for result in counted if result.trial.kind == kind])
            ],
        ),
        "; ".join(f"*{kind}*: {what}" for kind, what in WRONG.items()) + ".",
        *_steps(counted),
        "## By failpoint",
        "Trials, over all kinds and all times along the way; `!` marks those where something was wrong.",
        _matrix([result for result in counted if result.trial.kind != "processes"], FAULTS, "failpoint"),
    ]
    if of_processes := [result for result in counted if result.trial.kind == "processes"]:
        parts += ["## By process", _matrix(of_processes, SIGNALS, "process")]
    if wrong := [result for result in counted if result.wrong]:
        parts += ["## What was wrong", "\n".join(_told(result) for result in wrong)]
    if open_ or never:
        parts.append("## What is not in here")
    if open_:
        by_kind = ", ".join(
            f"{sum(trial.kind == kind for trial in open_)} of kind {kind}"
            for kind in KINDS
            if any(trial.kind == kind for trial in open_)
        )
        parts.append(f"{len(open_)} planned trials have not been run: {by_kind}.")
    if never:
        parts.append(
            f"{len(never)} were over before their failpoint or moment came, and are not counted: {', '.join(never)}."
        )
    return "\n\n".join(parts) + "\n"


def _steps(counted: Iterable[Result]) -> list[str]:
    rows = []
    for kind in KINDS:
        own = [result for result in counted if result.trial.kind == kind]
        first = [result.first_step_s for result in own if result.first_step_s is not None]
        lost = [result.steps_lost for result in own if result.steps_lost is not None]
        if first:
            rows.append(
                [
                    kind,
                    len(first),
                    f"{statistics.median(first):.1f}",
                    f"{max(first):.1f}",
                    len(lost),
                    max(lost, default=0),
                ]
            )
    if not rows:
        return []
    return [
        "From the second command to its first step, and steps that were made twice, where there were steps to make:",
        _table(["kind", "trials", "median s", "longest s", "trials", "most steps lost"], rows),
    ]


def _matrix(counted: Iterable[Result], faults: Sequence[str], what: str) -> str:
    cells: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in counted:
        cells[result.trial.place][result.trial.fault].append(result)
    rows = [[place, *(_cell(own.get(fault, [])) for fault in faults)] for place, own in sorted(cells.items())]
    return _table([what, *faults], rows)


def _cell(own: Sequence[Result]) -> str:
    wrong = sum(bool(result.wrong) for result in own)
    return (str(len(own)) if own else "") + (f", {wrong}!" if wrong else "")


def _told(result: Result) -> str:
    first = next(iter(result.wrong))
    return f"- {result.trial.name}: {first}: {' '.join(result.wrong[first][0].split())[-300:]}"


def _many(results: Iterable[Result], kind: str) -> int:
    return sum(kind in result.wrong for result in results)


def _median(results: Sequence[Result]) -> float:
    return statistics.median(result.seconds for result in results)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
