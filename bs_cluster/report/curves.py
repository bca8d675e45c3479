"""The figure over training: residual boosting, round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bs_cluster.report.inputs import History, ReportInputs
from bs_cluster.report.record import Report, RoundReport
from bs_cluster.report.style import BLUE, FAINT, GREY, INK, RED, new_figure

PANELS_PER_ROW = 3


def boosting(inputs: ReportInputs, report: Report) -> Figure | None:
    """Validation loss across the rounds of each domain, one panel a domain; rejected rounds dashed and crossed."""
    closed = [domain for domain in report.domains if any(row.domain == domain for row in report.stacks)]
    if not closed:
        return None
    later = [row for row in report.stacks if row.round > 1]
    if later:
        kept = sum(row.committed for row in later)
        title = f"{kept} of {len(later)} later rounds were kept, {len(later) - kept} rejected"
    else:
        title = "One round per domain; no domain was boosted further"
    columns = min(PANELS_PER_ROW, len(closed))
    lines = math.ceil(len(closed) / columns)
    subtitle = (
        "Loss on validation rows over training steps; dots are the snapshots frozen, rejected rounds dashed and crossed"
    )
    figure = new_figure(max(3.4 * columns, 7.2), 2.3 * lines + 0.1, title, subtitle)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, domain in zip(panels, closed, strict=False):
        rows = [row for row in report.stacks if row.domain == domain]
        _boosting_panel(axes, domain, rows, inputs.histories)
    for axes in panels[len(closed) :]:
        axes.set_visible(False)
    figure.supxlabel("training step of the domain", fontsize=9.5, color=GREY)
    figure.supylabel("validation loss (nats/token)", fontsize=9.5, color=GREY)
    return figure


def _boosting_panel(axes: Axes, domain: str, rows: Sequence[RoundReport], histories: Mapping[str, History]) -> None:
    start = 0
    axes.set_title(domain, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for row in rows:
        colour = BLUE if row.committed else RED
        points = _round_points(row, histories.get(f"{domain}_r{row.round}", []))
        if start:
            axes.axvline(start, color=FAINT, linewidth=1.2, zorder=0)
        if points:
            steps, losses = [start + step for step, _ in points], [loss for _, loss in points]
            axes.plot(steps, losses, color=colour, linewidth=1.8, linestyle="-" if row.committed else (0, (3, 2)))
            # The end is the round's best snapshot, which is what was frozen or turned away, not its last step.
            if row.val_after is not None:
                marker, size = ("o", 26) if row.committed else ("X", 34)
                best = min(range(len(losses)), key=losses.__getitem__)
                axes.scatter(steps[best], row.val_after, size, colour, marker=marker, zorder=3, linewidths=0)
        axes.text(
            start, 1.0, f" round {row.round}", transform=axes.get_xaxis_transform(),
            fontsize=8, color=GREY if row.committed else RED, va="top",
        )  # fmt: skip
        start += max(row.steps, points[-1][0] if points else 0, 1)
    axes.set_xlim(0, start * 1.03)
    axes.margins(y=0.18)
    _keep_readable(axes, rows)
    axes.locator_params(axis="both", nbins=5)


def _keep_readable(axes: Axes, rows: Sequence[RoundReport]) -> None:
    """Let a round that diverged leave through the top rather than flatten every other curve of its panel."""
    known = [end for row in rows for end in (row.val_before, row.val_after) if end is not None]
    if not known:
        return
    start, low = max(row.val_before or known[0] for row in rows), min(known)
    span = max(start - low, 0.1 * abs(start))
    if axes.get_ylim()[1] > start + 0.5 * span:
        axes.set_ylim(low - 0.2 * span, start + 0.5 * span)


def _round_points(row: RoundReport, history: History) -> list[tuple[int, float]]:
    """(step, validation loss) of a round from its parent's loss on; without a history, its two ends."""
    points = [(0, row.val_before)] if row.val_before is not None else []
    seen = [
        (int(line["step"]), float(line["val_loss"]))
        for line in history
        if line.get("val_loss") is not None and math.isfinite(line["val_loss"]) and line["step"] > 0
    ]
    if not seen and row.val_after is not None:
        seen = [(max(row.steps, 1), row.val_after)]
    return points + seen
