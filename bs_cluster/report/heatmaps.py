"""Figures of domains against domains: what each new one did to the others, what they share, what fires for whom."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bs_cluster.report.gains import MaskGains, mask_gains
from bs_cluster.report.inputs import ReportInputs
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
from bs_cluster.report.verdicts import OVERLAP_TOLERANCE

MAX_MASKS = 32  # combinations drawn: more columns than this cannot be told apart


def loss_matrix(inputs: ReportInputs, report: dict[str, Any]) -> Figure | None:
    """After each domain closed, every closed domain's loss against the base: all stacks on, and only its own."""
    closed = [domain for domain in report["domains"] if report["matrix"].get(domain)]
    if len(closed) < 2:
        return None
    panels = {mode: _against_base(report["matrix"], closed, mode) for mode in ("ungated", "isolated")}
    worst = np.nanmax(panels["ungated"], initial=-np.inf)
    title = (
        "Isolated losses stay where they closed" if _constant_columns(panels["isolated"]) else "Isolated losses moved"
    )
    if worst > 0:
        title += f"; all stacks on costs up to {worst:.2f} nats over the base"
    elif np.isfinite(worst):
        title += "; all stacks on stays under the base everywhere"
    subtitle = "Loss minus base loss (nats/token): blue is better than the base, red worse; a row per domain closed"
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


def _against_base(matrix: dict[str, dict[str, dict[str, float | None]]], closed: list[str], mode: str) -> np.ndarray:
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


def overlap(inputs: ReportInputs, report: dict[str, Any]) -> Figure | None:
    """Mean squared cosine between the directions two domains claimed."""
    names = [domain for domain in report["domains"] if domain in report["overlap"]]
    if len(names) < 2:
        return None
    values = np.array([[_number(report["overlap"][a].get(b)) for b in names] for a in names])
    apart = values[~np.eye(len(names), dtype=bool)]
    largest = float(np.nanmax(apart, initial=0.0))
    if largest <= OVERLAP_TOLERANCE:
        title = f"Domains claim disjoint directions: overlap at most {largest:.1g}"
    else:
        title = f"Domains share directions: overlap up to {largest:.2g}"
    subtitle = "Mean squared cosine between claimed subspaces, averaged over sites; 1 is the same subspace"
    return _square(values, names, names, title, subtitle, "{:.2g}", ("", ""))


def gates(inputs: ReportInputs, report: dict[str, Any]) -> Figure | None:
    """Mean gate weight that the meta-router serves to each domain (columns) for rows of each domain (rows)."""
    rows = [domain for domain in report["domains"] if domain in report["gates"]]
    if len(rows) < 2:
        return None
    columns = report["domains"]
    values = np.array([[_number(report["gates"][a].get(b)) for b in columns] for a in rows])
    own = [a for i, a in enumerate(rows) if np.isfinite(values[i]).any() and columns[int(np.nanargmax(values[i]))] == a]
    who = "every domain's rows" if len(own) == len(rows) else f"{len(own)} of {len(rows)} domains' rows"
    title = f"The own domain gets the largest gate on {who}"
    subtitle = "Mean gate weight served on held-out rows; off the diagonal, domains that help one another"
    return _square(values, columns, rows, title, subtitle, "{:.2f}", ("gate of", "rows of"))


def _square(values, columns, rows, title: str, subtitle: str, text: str, labels: tuple[str, str]) -> Figure:
    cell = min(max(0.85, 0.09 * max(map(len, columns))), 1.1)
    figure = new_figure(max(7.2, cell * len(columns) + 1.6), max(1.5, 0.5 * len(rows) + 0.7), title, subtitle)
    axes = figure.subplots()
    heat_map(axes, values, columns, rows, SEQUENTIAL, Normalize(0, 1), cell, text)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return figure


def sweep_outcomes(inputs: ReportInputs, report: dict[str, Any]) -> Figure | None:
    """Mean gain of every combination on every domain's rows, the best boxed; dots below say which domains fire."""
    gains = _drawn(mask_gains(inputs.outcomes, inputs.domains))
    shown = [row for row, domain in enumerate(gains.domains) if gains.best(domain)]
    if len(shown) < 2:
        return None
    best = {row: gains.best(gains.domains[row]) for row in shown}
    mixed = [row for row, found in best.items() if found and found[0].bit_count() > 1]
    own = [row for row, found in best.items() if found and found[0] == 1 << row]
    title = (
        f"Best on average: a mix of domains for {len(mixed)} of {len(shown)} domains, own stacks alone for {len(own)}"
    )
    subtitle = "Loss saved against the base (nats/token), blue is better; best combination boxed, dots mark who fires"
    height = 0.42 * len(shown) + 0.3 * len(gains.domains) + 0.5
    figure = new_figure(max(7.2, 0.34 * len(gains.masks) + 1.8), height, title, subtitle)
    heat, dots = figure.subplots(2, 1, height_ratios=[0.42 * len(shown) + 0.1, 0.3 * len(gains.domains)], sharex=True)
    values = gains.gain_DM[shown]
    # Gain is minus the loss difference of the other figures: negate, so that blue is better in all of them.
    unnamed, rows = [""] * len(gains.masks), [gains.domains[row] for row in shown]
    heat_map(heat, -values, unnamed, rows, DIVERGING, centred(values), 1.0, text=None)
    for place, row in enumerate(shown):
        found = best[row]
        column = gains.masks.index(found[0]) if found else 0
        heat.add_patch(_box(column, place))
        value = f"{gains.gain_DM[row, column]:.2f}".replace("-", "−")
        dark = gains.gain_DM[row, column] > 0.55 * np.nanmax(np.abs(values))
        heat.text(column, place, value, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    heat.set_ylabel("rows of")
    _fires(dots, gains)
    return figure


def _box(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.6, zorder=4)


def _drawn(gains: MaskGains) -> MaskGains:
    """The combinations worth a column: all of them, or the ``MAX_MASKS`` that gain most on some domain's rows."""
    if len(gains.masks) <= MAX_MASKS:
        return gains
    worth_M = np.where(np.isfinite(gains.gain_DM), gains.gain_DM, -np.inf).max(axis=0)
    best = {found[0] for domain in gains.domains if (found := gains.best(domain))}
    ranked = sorted(range(len(gains.masks)), key=lambda m: (gains.masks[m] not in best, -worth_M[m]))
    kept = sorted(ranked[:MAX_MASKS])
    return MaskGains(gains.domains, tuple(gains.masks[m] for m in kept), gains.gain_DM[:, kept])


def _fires(axes: Axes, gains: MaskGains) -> None:
    """Under each column, a filled dot for every domain that fires in it."""
    for row in range(len(gains.domains)):
        on = [column for column, mask in enumerate(gains.masks) if mask >> row & 1]
        off = [column for column in range(len(gains.masks)) if column not in on]
        axes.scatter(off, [row] * len(off), s=14, color=FAINT, linewidths=0)
        axes.scatter(on, [row] * len(on), s=30, color=INK, linewidths=0)
    axes.set_yticks(range(len(gains.domains)), [short(domain) for domain in gains.domains])
    axes.set_ylim(len(gains.domains) - 0.4, -0.6)
    axes.set_ylabel("fires")
    axes.set_xticks([])
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _number(value: float | None) -> float:
    return np.nan if value is None else value
