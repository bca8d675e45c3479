"""The figure over training: residual boosting, round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bs_cluster.report.inputs import History, ReportInputs
from bs_cluster.report.record import Report, RoundReport, later_rounds
from bs_cluster.report.style import BLUE, FAINT, GREY, INK, RED, new_figure

PANELS_PER_ROW = 3


def boosting(inputs: ReportInputs, report: Report) -> Figure | None:
    """Loss on the rows that select snapshots, over the rounds of each domain; a rejected round leaves no curve, only
    its place and name."""
    closed = [
        domain for domain in report.domains if any(row.domain == domain and not row.aligned for row in report.stacks)
    ]
    if not closed:
        return None
    later = later_rounds(report.stacks)
    if later:
        kept = sum(row.committed for row in later)
        title = f"{kept} of {len(later)} later rounds were kept, {len(later) - kept} rejected"
    else:
        title = "One round per domain; no domain was boosted further"
    columns = min(PANELS_PER_ROW, len(closed))
    lines = math.ceil(len(closed) / columns)
    subtitle = "Loss on the rows that select a snapshot, over training steps; dots are the snapshots that were frozen"
    figure = new_figure(max(3.4 * columns, 7.2), 2.3 * lines + 0.1, title, subtitle)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, domain in zip(panels, closed, strict=False):
        rows = [row for row in report.stacks if row.domain == domain and not row.aligned]
        _boosting_panel(axes, domain, rows, inputs.histories)
    for axes in panels[len(closed) :]:
        axes.set_visible(False)
    figure.supxlabel("training step of the domain", fontsize=9.5, color=GREY)
    figure.supylabel("selection loss (nats/token)", fontsize=9.5, color=GREY)
    return figure


def _boosting_panel(axes: Axes, domain: str, rows: Sequence[RoundReport], histories: Mapping[str, History]) -> None:
    start, curves = 0, []
    axes.set_title(domain, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for row in rows:
        points = selection_curve(histories.get(f"{domain}_r{row.round}", []))
        if start:
            axes.axvline(start, color=FAINT, linewidth=1.2, zorder=0)
        if points:
            steps, losses = [start + step for step, _ in points], [loss for _, loss in points]
            axes.plot(steps, losses, color=BLUE, linewidth=1.8)
            best = min(range(len(losses)), key=losses.__getitem__)  # what was frozen, not the last step
            axes.scatter(steps[best], losses[best], 26, BLUE, marker="o", zorder=3, linewidths=0)
            curves.append(losses)
        axes.text(
            start, 1.0, f" round {row.round}{'' if row.committed else ' ✗'}", transform=axes.get_xaxis_transform(),
            fontsize=8, color=GREY if row.committed else RED, va="top",
        )  # fmt: skip
        start += max(row.steps, points[-1][0] if points else 0, 1)
    axes.set_xlim(0, start * 1.03)
    axes.margins(y=0.18)
    _keep_readable(axes, curves)
    axes.locator_params(axis="both", nbins=5)


def _keep_readable(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Let a round that diverged leave through the top rather than flatten every other curve of its panel."""
    if not curves:
        return
    start, low = max(losses[0] for losses in curves), min(map(min, curves))
    span = max(start - low, 0.1 * abs(start))
    if axes.get_ylim()[1] > start + 0.5 * span:
        axes.set_ylim(low - 0.2 * span, start + 0.5 * span)


def selection_curve(history: History) -> list[tuple[int, float]]:
    """(step, loss) on the rows that select a round's snapshot, from its parent's at step 0 on. The losses before and
    after a round are of other rows, those that decide, and no points of this curve."""
    found = [(int(line["step"]), line.get("selection_loss")) for line in history]
    return [(step, float(loss)) for step, loss in found if loss is not None and math.isfinite(loss)]
