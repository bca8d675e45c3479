"""Figures of domains against domains or kinds of rows: who disturbs whom, what they share, what fires for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bs_cluster.report.checks import OVERLAP_TOLERANCE
from bs_cluster.report.gains import MaskGains, mask_gains
from bs_cluster.report.inputs import ReportInputs
from bs_cluster.report.record import Report
from bs_cluster.report.style import (
    DIVERGING,
    FAINT,
    INK,
    SEQUENTIAL,
    centred,
    heat_map,
    new_figure,
    short,
)

MAX_MASKS = 32  # combinations drawn: more columns than this cannot be told apart


def loss_matrix(inputs: ReportInputs, report: Report) -> Figure | None:
    """After each domain closed, every closed domain's loss against the base: all stacks on, and only its own."""
    closed = [domain for domain in report.domains if report.matrix.get(domain)]
    if len(closed) < 2:
        return None
    panels = {mode: _against_base(report.matrix, closed, mode) for mode in ("ungated", "isolated")}
    worst = np.nanmax(panels["ungated"], initial=-np.inf)
    title = (
        "Isolated losses stay where they closed" if _constant_columns(panels["isolated"]) else "Isolated losses moved"
    )
    if worst > 0:
        title += f"; all stacks on costs up to {worst:.2f} nats over the base"
    elif np.isfinite(worst):
        title += "; all stacks on stays under the base everywhere"
    subtitle = (
        "Loss minus base loss on validation rows (nats/token): blue is better than the base, red worse; "
        "a row per domain closed"
    )
    cell = min(max(0.72, 0.09 * max(map(len, closed))), 1.0)
    figure = new_figure(max(8.6, 2 * (cell * len(closed) + 1.2)), max(1.6, 0.46 * len(closed) + 0.9), title, subtitle)
    norm = centred(np.concatenate(list(panels.values())))
    names = {"ungated": "all stacks, ungated", "isolated": "own stacks only"}
    for axes, (mode, values) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        heat_map(axes, values, closed, closed, DIVERGING, norm, cell)
        axes.set_title(names[mode], loc="left", fontsize=10, color=INK)
        axes.set_xlabel("evaluated on")
        axes.set_ylabel("after" if mode == "ungated" else "")
    return figure


def _against_base(
    matrix: Mapping[str, Mapping[str, Mapping[str, float | None]]], closed: Sequence[str], mode: str
) -> np.ndarray:
    values = np.full((len(closed), len(closed)), np.nan)
    for row, after in enumerate(closed):
        for column, domain in enumerate(closed):
            losses = matrix[after].get(domain, {})
            loss, base = losses.get(mode), losses.get("base")
            if loss is not None and base is not None:
                values[row, column] = loss - base
    return values


def _constant_columns(values: np.ndarray) -> bool:
    return all(np.ptp(column[np.isfinite(column)]) == 0 for column in values.T if np.isfinite(column).any())


def overlap(inputs: ReportInputs, report: Report) -> Figure | None:
    """Mean squared cosine between the directions two domains claimed."""
    names = [domain for domain in report.domains if domain in report.overlap]
    if len(names) < 2:
        return None
    values = np.array([[_number(report.overlap[a].get(b)) for b in names] for a in names])
    apart = values[~np.eye(len(names), dtype=bool)]
    largest = float(np.nanmax(apart, initial=0.0))
    if largest <= OVERLAP_TOLERANCE:
        title = f"Claims are disjoint, as built: overlap at most {largest:.1g}"
    else:
        title = f"Claims overlap, against how they are built: up to {largest:.2g}"
    subtitle = "Mean squared cosine between claimed subspaces, averaged over sites; 1 is the same subspace"
    return _square(values, names, names, title, subtitle, "{:.2g}", ("", ""))


def gates(inputs: ReportInputs, report: Report) -> Figure | None:
    """Mean gate weight that the meta-router serves to each domain (columns), by whose rows they are (rows)."""
    rows = [owner for owner in report.owners if owner in report.gates]
    if len(rows) < 2:
        return None
    columns = report.domains
    values = np.array([[_number(report.gates[a].get(b)) for b in columns] for a in rows])
    owned = [i for i, a in enumerate(rows) if a in columns and np.isfinite(values[i]).any()]
    own = [i for i in owned if columns[int(np.nanargmax(values[i]))] == rows[i]]
    who = "every domain's rows" if len(own) == len(owned) else f"{len(own)} of {len(owned)} domains' rows"
    title = f"The own domain gets the largest gate on {who}"
    subtitle = "Mean gate weight served, by whose rows they are"
    return _square(values, columns, rows, title, subtitle, "{:.2f}", ("gate of", "rows of"))


def _square(values, columns, rows, title: str, subtitle: str, text: str, labels: tuple[str, str]) -> Figure:
    cell = min(max(0.85, 0.09 * max(map(len, columns))), 1.1)
    figure = new_figure(max(7.2, cell * len(columns) + 1.6), max(1.5, 0.5 * len(rows) + 0.7), title, subtitle)
    axes = figure.subplots()
    heat_map(axes, values, columns, rows, SEQUENTIAL, Normalize(0, 1), cell, text)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return figure


def sweep_outcomes(inputs: ReportInputs, report: Report) -> Figure | None:
    """Mean gain of every combination on every domain's rows, the best boxed; dots below say which domains fire."""
    gains = _drawn(mask_gains(inputs.outcomes, inputs.owners))
    shown = [row for row, domain in enumerate(gains.owners) if gains.best(domain)]
    if len(shown) < 2:
        return None
    best = {row: gains.best(gains.owners[row]) for row in shown}
    mixed = [row for row, found in best.items() if found and found[0].bit_count() > 1]
    own = [row for row, found in best.items() if found and row < len(inputs.domains) and found[0] == 1 << row]
    title = (
        f"Best on average, in hindsight: several domains for {len(mixed)} of {len(shown)} kinds of rows, "
        f"own stacks alone for {len(own)}"
    )
    subtitle = "Loss saved against the base (nats/token), blue is better; best combination boxed, dots mark who fires"
    height = 0.42 * len(shown) + 0.3 * len(inputs.domains) + 0.5
    figure = new_figure(max(7.2, 0.34 * len(gains.masks) + 1.8), height, title, subtitle)
    heat, dots = figure.subplots(2, 1, height_ratios=[0.42 * len(shown) + 0.1, 0.3 * len(inputs.domains)], sharex=True)
    values = gains.gain_WM[shown]
    # Gain is minus the loss difference of the other figures: negate, so that blue is better in all of them.
    unnamed, rows = [""] * len(gains.masks), [gains.owners[row] for row in shown]
    heat_map(heat, -values, unnamed, rows, DIVERGING, centred(values), 1.0, text=None)
    for place, row in enumerate(shown):
        found = best[row]
        column = gains.masks.index(found[0]) if found else 0
        heat.add_patch(_box(column, place))
        value = f"{gains.gain_WM[row, column]:.2f}".replace("-", "−")
        dark = gains.gain_WM[row, column] > 0.55 * np.nanmax(np.abs(values))
        heat.text(column, place, value, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    heat.set_ylabel("rows of")
    _fires(dots, gains, inputs.domains)
    return figure


def _box(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.6, zorder=4)


def _drawn(gains: MaskGains) -> MaskGains:
    """The combinations worth a column: all of them, or the ``MAX_MASKS`` that gain most on some domain's rows."""
    if len(gains.masks) <= MAX_MASKS:
        return gains
    worth_M = np.where(np.isfinite(gains.gain_WM), gains.gain_WM, -np.inf).max(axis=0)
    best = {found[0] for domain in gains.owners if (found := gains.best(domain))}
    ranked = sorted(range(len(gains.masks)), key=lambda m: (gains.masks[m] not in best, -worth_M[m]))
    kept = sorted(ranked[:MAX_MASKS])
    return MaskGains(gains.owners, tuple(gains.masks[m] for m in kept), gains.gain_WM[:, kept])


def _fires(axes: Axes, gains: MaskGains, domains: Sequence[str]) -> None:
    """Under each column, a filled dot for every domain that fires in it."""
    for row in range(len(domains)):
        on = [column for column, mask in enumerate(gains.masks) if mask >> row & 1]
        off = [column for column in range(len(gains.masks)) if column not in on]
        axes.scatter(off, [row] * len(off), s=14, color=FAINT, linewidths=0)
        axes.scatter(on, [row] * len(on), s=30, color=INK, linewidths=0)
    axes.set_yticks(range(len(domains)), [short(domain) for domain in domains])
    axes.set_ylim(len(domains) - 0.4, -0.6)
    axes.set_ylabel("fires")
    axes.set_xticks([])
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _number(value: float | None) -> float:
    return np.nan if value is None else value
