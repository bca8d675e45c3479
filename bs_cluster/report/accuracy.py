"""Answers in words, told right from wrong: shares by mode and by whose rows they are, their difference, examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bs_cluster.estimates import Estimate, estimate, share
from bs_cluster.records import JudgedAnswer
from bs_cluster.report.compare import below_zero, measured
from bs_cluster.report.inputs import ReportInputs
from bs_cluster.report.intervals import MODE_COLOURS
from bs_cluster.report.record import (
    ALL,
    ANSWER_MODES,
    EVERY,
    FOREIGN,
    MIXED,
    AnswersReport,
    Comparison,
    Example,
    Finding,
    Report,
)
from bs_cluster.report.style import FAINT, INK, label_x, new_figure
from bs_cluster.report.wording import percent
from bs_cluster.sweep.owners import kind_of


def answers_report(inputs: ReportInputs) -> AnswersReport:
    """What was right, by mode, over each owner's rows, each kind's and all that were asked."""
    kinds = {"domain": ALL, "mixed": MIXED, "foreign": FOREIGN}
    groups: dict[str, defaultdict[str, list[bool]]] = {mode: defaultdict(list) for mode in ANSWER_MODES}
    for answer in inputs.answers:
        kind = kinds[kind_of(answer.owner, inputs.domains)]
        for group in (answer.owner, kind, EVERY):
            groups[answer.mode][group].append(answer.right)
    rows = {group: len(rights) for group, rights in groups["base"].items()}
    order = [name for name in (*inputs.owners, ALL, MIXED, FOREIGN, EVERY) if name in rows]
    return AnswersReport(
        rows={name: rows[name] for name in order},
        tokens=inputs.answer_tokens,
        right={
            mode: {name: share(by[name]) if len(by[name]) == rows[name] else None for name in order}
            for mode, by in groups.items()
        },
        wrong_less_base=_wrong_less_base(inputs.answers),
        unasked={owner: dict(counts) for owner, counts in inputs.unasked.items()},
        examples=_examples(inputs.answers),
    )


def _wrong_less_base(answers: Sequence[JudgedAnswer]) -> Estimate | None:
    """Share of wrong answers, routed − base on the same rows: below zero, routed is right more often."""
    right = {mode: {a.row_id: a.right for a in answers if a.mode == mode} for mode in ("base", "routed")}
    fewer_B = np.array([float(was) - float(right["routed"][row]) for row, was in right["base"].items()])
    return measured(estimate(fewer_B, np.ones(len(fewer_B))))


def _examples(answers: Sequence[JudgedAnswer]) -> tuple[Example, ...]:
    """The first row of each owner: a rule, and no choice."""
    first: dict[str, str] = {}
    for answer in answers:
        first.setdefault(answer.owner, answer.row_id)
    by = {(answer.row_id, answer.mode): answer for answer in answers}
    found = [(by[row, "base"], by[row, "routed"]) for row in first.values()]
    return tuple(
        Example(base.owner, base.prompt, base.reference, base.text, base.right, routed.text, routed.right)
        for base, routed in found
    )


def routed_is_right_more_often(answers: AnswersReport) -> Finding:
    difference = answers.wrong_less_base
    answer = below_zero(difference)
    right = [answers.right[mode].get(EVERY) for mode in ("base", "routed")]
    told = [f"{mode} {found.count}" for mode, found in zip(("base", "routed"), right, strict=True) if found]
    return Finding(
        "Routed answers more prompts right than the base",
        answer,
        "share of wrong answers, routed − base below 0",
        (Comparison("share of wrong answers", difference, answer),),
        f"greedy answers right: {', '.join(told)}; the difference is of shares" if told else "no answer was checked",
    )


def accuracy_bars(inputs: ReportInputs, report: Report) -> Figure | None:
    """A group of bars per kind of rows, a bar per mode with its interval; the oracle is outlined."""
    answers = report.answers
    kinds = [name for name in (ALL, MIXED, FOREIGN) if name in answers.rows]
    if not kinds:
        return None
    subtitle = (
        f"Share of greedy answers (at most {answers.tokens} tokens) that a verifier finds right, of sweep rows that "
        "can be checked; lines are 95 % intervals (Wilson). The oracle is best by loss, in hindsight, not by answer"
    )
    inches = 2.2
    figure = new_figure(max(7.2, inches * len(kinds) + 1.2), 3.0, _title(answers), subtitle)
    axes = figure.subplots()
    width = 0.84 / len(ANSWER_MODES)
    for index, mode in enumerate(ANSWER_MODES):
        look: dict[str, Any] = (
            {"facecolor": "white", "edgecolor": INK, "linewidth": 0.9, "linestyle": (0, (2, 1.5))}
            if mode == "oracle"
            else {"color": MODE_COLOURS[mode]}
        )
        found = [(place, of) for place, kind in enumerate(kinds) if (of := answers.right[mode][kind])]
        places = [place + (index - (len(ANSWER_MODES) - 1) / 2) * width for place, _ in found]
        axes.bar(places, [100 * of.mean for _, of in found], width * 0.9, label=mode, **look)
        for x, (_, of) in zip(places, found, strict=True):
            axes.vlines(x, 100 * of.low, 100 * of.high, color=INK, linewidth=0.9, alpha=0.75)
            above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 7}
            axes.annotate(f"{of.count}", (x, 100 * of.high), color=INK, **above)
    axes.set_ylim(0, 108)
    axes.set_xlim(-0.6, len(kinds) - 0.4)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("right (%)")
    label_x(axes, kinds, inches, [f"{answers.rows[kind]} rows" for kind in kinds])
    axes.tick_params(axis="both", length=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, handlelength=1.1, columnspacing=1.6
    )
    return figure


def _title(answers: AnswersReport) -> str:
    base, routed = answers.right["base"][EVERY], answers.right["routed"][EVERY]
    assert base, "a row that is asked is asked of the base"
    assert routed, "and of what is served"
    told = f"{percent(base.mean)} (base) {{}} {percent(routed.mean)} (routed) of {base.rows}"
    if below_zero(answers.wrong_less_base) == "undecided":
        return f"Right answers: {told.format('and')}, too few to tell apart"
    return f"Right answers go from {told.format('to')}"
