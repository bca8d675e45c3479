"""Figures over training: residual boosting round by round, and the loss of every domain by mode."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bs_cluster.report.inputs import MODES, ReportInputs
from bs_cluster.report.style import BLUE, FAINT, GOLD, GREY, INK, PALE_BLUE, RED, label_x, new_figure

PANELS_PER_ROW = 3


def boosting(inputs: ReportInputs, report: dict[str, Any]) -> Figure | None:
    """Validation loss across the rounds of each domain, one panel a domain; rejected rounds dashed and crossed."""
    closed = [domain for domain in report["domains"] if any(row["domain"] == domain for row in report["stacks"])]
    if not closed:
        return None
    later = [row for row in report["stacks"] if row["round"] > 1]
    kept, rejected = sum(row["committed"] for row in later), sum(not row["committed"] for row in later)
    if later:
        title = f"{kept} of {len(later)} later rounds lowered the loss further; {rejected or 'none'} rejected"
    else:
        title = "One round per domain; no domain was boosted further"
    columns = min(PANELS_PER_ROW, len(closed))
    lines = math.ceil(len(closed) / columns)
    subtitle = (
        "Validation loss over training steps; dots are the snapshots frozen, rejected rounds are dashed and crossed"
    )
    figure = new_figure(max(3.4 * columns, 7.2), 2.3 * lines + 0.1, title, subtitle)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, domain in zip(panels, closed, strict=False):
        rows = [row for row in report["stacks"] if row["domain"] == domain]
        _boosting_panel(axes, domain, rows, inputs.histories)
    for axes in panels[len(closed) :]:
        axes.set_visible(False)
    figure.supxlabel("training step of the domain", fontsize=9.5, color=GREY)
    figure.supylabel("validation loss (nats/token)", fontsize=9.5, color=GREY)
    return figure


def _boosting_panel(axes: Axes, domain: str, rows: list[dict[str, Any]], histories) -> None:
    start = 0
    axes.set_title(domain, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for row in rows:
        colour = BLUE if row["committed"] else RED
        points = _round_points(row, histories.get(f"{domain}_r{row['round']}", []))
        if start:
            axes.axvline(start, color=FAINT, linewidth=1.2, zorder=0)
        if points:
            steps, losses = [start + step for step, _ in points], [loss for _, loss in points]
            axes.plot(steps, losses, color=colour, linewidth=1.8, linestyle="-" if row["committed"] else (0, (3, 2)))
            # The end is the round's best snapshot, which is what was frozen or turned away, not its last step.
            if row["val_after"] is not None:
                marker, size = ("o", 26) if row["committed"] else ("X", 34)
                best = min(range(len(losses)), key=losses.__getitem__)
                axes.scatter(steps[best], row["val_after"], size, colour, marker=marker, zorder=3, linewidths=0)
        axes.text(
            start, 1.0, f" round {row['round']}", transform=axes.get_xaxis_transform(),
            fontsize=8, color=GREY if row["committed"] else RED, va="top",
        )  # fmt: skip
        start += max(row["steps"], points[-1][0] if points else 0, 1)
    axes.set_xlim(0, start * 1.03)
    axes.margins(y=0.18)
    _keep_readable(axes, rows)
    axes.locator_params(axis="both", nbins=5)


def _keep_readable(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Let a round that diverged leave through the top rather than flatten every other curve of its panel."""
    known = [row[end] for row in rows for end in ("val_before", "val_after") if row[end] is not None]
    if not known:
        return
    start, low = max(row["val_before"] or known[0] for row in rows), min(known)
    span = max(start - low, 0.1 * abs(start))
    if axes.get_ylim()[1] > start + 0.5 * span:
        axes.set_ylim(low - 0.2 * span, start + 0.5 * span)


def _round_points(row: dict[str, Any], history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, validation loss) of a round from its parent's loss on; without a history, its two ends."""
    points = [(0, row["val_before"])] if row["val_before"] is not None else []
    seen = [
        (int(line["step"]), float(line["val_loss"]))
        for line in history
        if line.get("val_loss") is not None and math.isfinite(line["val_loss"]) and line["step"] > 0
    ]
    if not seen and row["val_after"] is not None:
        seen = [(max(row["steps"], 1), row["val_after"])]
    return points + seen


MODE_COLOURS = {
    "base": "#c3cad3",
    "isolated": PALE_BLUE,
    "parents": "#5b93b8",
    "ungated": GOLD,
    "routed": BLUE,
}


def loss_bars(inputs: ReportInputs, report: dict[str, Any]) -> Figure | None:
    """A group of bars per domain, a bar per mode; the oracle is outlined, since it cannot be served."""
    loss = report["loss"]
    modes = [mode for mode in MODES if any(value is not None for value in loss[mode].values())]
    domains = [domain for domain in report["domains"] if any(loss[mode][domain] is not None for mode in modes)]
    if not domains:
        return None
    note = report["loss_notes"].get("oracle")
    subtitle = "Mean loss per completion token, lower is better" + (
        f"; oracle: {note}" if note and "oracle" in modes else ""
    )
    inches = max(1.25, 0.2 * len(modes) + 0.25)
    figure = new_figure(max(7.2, inches * len(domains) + 1.2), 3.2, _bars_title(loss, domains), subtitle)
    axes = figure.subplots()
    width = 0.82 / len(modes)
    highest = max(value for mode in modes for value in loss[mode].values() if value is not None)
    for index, mode in enumerate(modes):
        measured = [(place, loss[mode][d]) for place, d in enumerate(domains) if loss[mode][d] is not None]
        places = [place + (index - (len(modes) - 1) / 2) * width for place, _ in measured]
        heights = [height for _, height in measured]
        look: dict[str, Any] = (
            {"facecolor": "white", "edgecolor": INK, "linewidth": 0.9, "linestyle": (0, (2, 1.5))}
            if mode == "oracle"
            else {"color": MODE_COLOURS[mode]}
        )
        axes.bar(places, heights, width * 0.9, label=mode, **look)
        for place, height in zip(places, heights, strict=True):
            _value_on_bar(axes, place, height, highest, light=mode in ("parents", "routed"))
    axes.tick_params(axis="x", length=0)
    label_x(axes, domains, inches)
    axes.set_ylabel("loss (nats/token)")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=len(modes), fontsize=9, handlelength=1.1, columnspacing=1.6)
    return figure


def _value_on_bar(axes: Axes, place: float, height: float, highest: float, light: bool) -> None:
    """The bar's value along it: inside its top, or above it where the bar is too short to hold the text."""
    inside = height > 0.22 * highest
    axes.annotate(
        f"{height:.2f}",
        (place, height),
        (0, -4 if inside else 3),
        textcoords="offset points",
        rotation=90,
        ha="center",
        va="top" if inside else "bottom",
        fontsize=7.5,
        color="white" if light and inside else INK,
    )


def _bars_title(loss: dict[str, dict[str, float | None]], domains: list[str]) -> str:
    pairs = [(loss["base"][d], loss["routed"][d]) for d in domains]
    both = [(base, routed) for base, routed in pairs if base is not None and routed is not None]
    if not both:
        return "Loss by domain and mode"
    lower = sum(routed < base for base, routed in both)
    base_mean, routed_mean = sum(base for base, _ in both) / len(both), sum(routed for _, routed in both) / len(both)
    which = "every domain" if lower == len(both) else f"{lower} of {len(both)} domains"
    return f"Routed beats the base on {which}: mean loss {base_mean:.2f} → {routed_mean:.2f}"
