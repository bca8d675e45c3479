"""A stack's own figure, shown on its run in MLflow: how its loss fell and how evenly its experts were used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from bs_cluster.report.style import BLUE, FAINT, GOLD, GREY, PALE_BLUE, new_figure, style


def draw_stack(name: str, history: Sequence[dict[str, Any]], path: Path) -> None:
    """Training and validation loss (nats per completion token) and expert imbalance (1 is even) by step, as a PNG."""
    train = [(line["step"], line["loss"]) for line in history if "loss" in line]
    held = [(line["step"], line["val_loss"]) for line in history if "val_loss" in line]
    uneven = [(line["step"], line["imbalance"]) for line in history if "imbalance" in line]
    fell = f"{held[0][1]:.3f} to {min(loss for _, loss in held):.3f}" if held else "not measured"
    with style():
        figure = new_figure(7.2, 2.9, f"{name}: validation loss {fell}", "Nats per completion token, by optimizer step")
        losses, experts = figure.subplots(1, 2, width_ratios=(2, 1))
        losses.plot(*zip(*train, strict=True), color=PALE_BLUE, linewidth=1.2, label="training batch")
        losses.plot(*zip(*held, strict=True), color=BLUE, linewidth=2, marker="o", markersize=4, label="validation")
        losses.legend(loc="upper right")
        experts.plot(*zip(*uneven, strict=True), color=GOLD, linewidth=1.6)
        experts.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
        experts.set_title("busiest expert, times its fair share", loc="left", fontsize=9.5)
        for axes in (losses, experts):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y", color=FAINT, linewidth=0.8)
            axes.set_axisbelow(True)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
