"""The figures of a report: which there are, what each is called, and drawing those that the numbers allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from bs_cluster.report import accuracy, curves, heatmaps, intervals
from bs_cluster.report.inputs import ReportInputs
from bs_cluster.report.record import FigureFile, Report
from bs_cluster.report.style import save, style


@dataclass(frozen=True)
class Plot:
    """``draw`` gives None where the campaign has nothing to show: one domain, no stack, the null space off."""

    name: str
    title: str
    draw: Callable[[ReportInputs, Report], Figure | None]


PLOTS = (
    Plot("loss_by_mode", "Loss by mode", intervals.loss_bars),
    Plot("accuracy", "Answers that are right", accuracy.accuracy_bars),
    Plot("regret", "Regret by routing", intervals.regret),
    Plot("boosting", "Residual boosting, round by round", curves.boosting),
    Plot("loss_matrix", "Loss after each domain closed", heatmaps.loss_matrix),
    Plot("sweep", "What the sweep found", heatmaps.sweep_outcomes),
    Plot("gates", "Gate weights served", heatmaps.gates),
    Plot("overlap", "Overlap of claimed directions", heatmaps.overlap),
)


def draw_figures(inputs: ReportInputs, report: Report, directory: Path) -> tuple[FigureFile, ...]:
    """Write ``<directory>/<name>.png`` for every figure that applies; what was written."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    with style():
        for plot in PLOTS:
            figure = plot.draw(inputs, report)
            if figure is not None:
                save(figure, directory / f"{plot.name}.png")
                drawn.append(FigureFile(f"{directory.name}/{plot.name}.png", plot.title))
    return tuple(drawn)
