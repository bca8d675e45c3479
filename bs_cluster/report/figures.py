"""The figures of a report: which there are, what each is called, and drawing those that the numbers allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bs_cluster.report import curves, heatmaps
from bs_cluster.report.inputs import ReportInputs
from bs_cluster.report.style import save, style


@dataclass(frozen=True)
class Plot:
    """``draw`` gives None where the campaign has nothing to show: one domain, no stack, the null space off."""

    name: str
    title: str
    draw: Callable[[ReportInputs, dict[str, Any]], Figure | None]


PLOTS = (
    Plot("loss_by_mode", "Loss by domain and mode", curves.loss_bars),
    Plot("boosting", "Residual boosting, round by round", curves.boosting),
    Plot("loss_matrix", "Loss after each domain closed", heatmaps.loss_matrix),
    Plot("sweep", "What the sweep found", heatmaps.sweep_outcomes),
    Plot("gates", "Gate weights served", heatmaps.gates),
    Plot("overlap", "Overlap of claimed directions", heatmaps.overlap),
)


def draw_figures(inputs: ReportInputs, report: dict[str, Any], directory: Path) -> list[dict[str, str]]:
    """Write ``<directory>/<name>.png`` for every figure that applies; what was written, as ``{file, title}``."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    with style():
        for plot in PLOTS:
            figure = plot.draw(inputs, report)
            if figure is not None:
                save(figure, directory / f"{plot.name}.png")
                drawn.append({"file": f"{directory.name}/{plot.name}.png", "title": plot.title})
    return drawn
