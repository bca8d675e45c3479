"""How every figure of a report looks: one palette, one typeface, titles that state the finding, quiet axes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

INK, GREY, FAINT = "#1f2a37", "#7b8794", "#e3e7ec"
BLUE, PALE_BLUE, RED, PALE_RED, GOLD = "#1f5f8b", "#8fb8d6", "#b8433a", "#dda49f", "#d9a441"

# Blue is better than the base, red worse, white the same.
DIVERGING = LinearSegmentedColormap.from_list("gain", [BLUE, PALE_BLUE, "#ffffff", PALE_RED, RED])
SEQUENTIAL = LinearSegmentedColormap.from_list("share", ["#ffffff", "#cfe0ec", PALE_BLUE, BLUE, "#153f5e"])
DIVERGING, SEQUENTIAL = (cmap.with_extremes(bad="#f4f5f7") for cmap in (DIVERGING, SEQUENTIAL))

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
DPI = 144
TITLE_SIZE, SUBTITLE_SIZE = 12.0, 9.0
LINE = 1.3 / 72  # inches a line takes, by its font size


def style():
    """Context in which figures are made and saved; leaves matplotlib's own settings as they were."""
    return matplotlib.rc_context(RC)


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """A figure of ``width`` by ``height`` inches of plot, with its finding and how to read it above, both wrapped."""
    title_lines = _wrapped(title, width, TITLE_SIZE, 0.61)
    subtitle_lines = _wrapped(subtitle, width, SUBTITLE_SIZE, 0.57)
    below_title = 0.16 + len(title_lines) * TITLE_SIZE * LINE + 0.05
    head = below_title + len(subtitle_lines) * SUBTITLE_SIZE * LINE + 0.12
    total = height + head
    figure = Figure(figsize=(width, total), dpi=DPI)
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - head / total - 0.01), w_pad=0.07, h_pad=0.06)
    text: dict[str, Any] = {"va": "top", "linespacing": 1.2}
    figure.text(0.12 / width, 1 - 0.16 / total, "\n".join(title_lines), fontsize=TITLE_SIZE, fontweight="bold", **text)
    figure.text(
        0.12 / width, 1 - below_title / total, "\n".join(subtitle_lines), fontsize=SUBTITLE_SIZE, color=GREY, **text
    )
    return figure


def _wrapped(text: str, width: float, size: float, em: float) -> list[str]:
    """``text`` in lines that fit ``width`` inches; a character is ``em`` of the font size wide on average."""
    return textwrap.wrap(text, max(20, int((width - 0.3) * 72 / (size * em)))) or [""]


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})


def centred(values: np.ndarray) -> Normalize:
    """A scale around zero, symmetric, so that equal strengths of blue and red mean equal nats."""
    finite = np.abs(values[np.isfinite(values)])
    limit = max(float(finite.max(initial=0.0)), 1e-3)
    return TwoSlopeNorm(0.0, -limit, limit)


def heat_map(
    axes: Axes,
    values: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    cmap: Colormap,
    norm: Normalize,
    inches_each: float,
    text: str | None = "{:+.2f}",
) -> None:
    """Cells with their numbers in them, no frame, hairline gaps; NaN cells stay empty, ``text=None`` omits numbers.

    ``inches_each`` is a column's width, from which the labels know whether they fit.
    """
    axes.imshow(np.ma.masked_invalid(values), cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    label_x(axes, columns, inches_each)
    axes.set_yticks(range(len(rows)), [short(row) for row in rows])
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if text is None:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = cmap(norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.58
            label = text.format(value).replace("-", "−") if value else "0"
            axes.text(column, row, label, ha="center", va="center", fontsize=8.5, color="white" if dark else INK)


def label_x(axes: Axes, names: Sequence[str], inches_each: float, below: Sequence[str] = ()) -> None:
    """Name the x positions, slanted where the longest name would not fit its column; ``below`` is a second line."""
    shown = [short(name) for name in names]
    crowded = max(map(len, shown), default=0) * 0.085 > inches_each
    shown = [f"{name}\n{line}" for name, line in zip(shown, below, strict=True)] if below else shown
    slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(len(shown)), shown, **slant)


def short(name: str) -> str:
    """A domain's name as it fits an axis."""
    return name if len(name) <= 16 else name[:15] + "…"
