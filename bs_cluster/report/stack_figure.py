"""A stack's own figure, shown on its run in MLflow: how its loss fell and how evenly its experts were used."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import MaxNLocator

from bs_cluster.report.inputs import History
from bs_cluster.report.style import BLUE, FAINT, GOLD, GREY, PALE_BLUE, new_figure, style

# What a round of alignment is watched by, by the figure that only its steps have.
ALIGNED = {
    "preferred": {
        "key": "preferred",
        "label": "pairs of the batch preferred",
        "unit": "DPO: −log σ of the margin (the parent's is 0.69), and the share of pairs, by optimizer step",
    },
    "reward": {
        "key": "reward",
        "label": "mean reward of drawn answers",
        "unit": "GRPO: share of held-out draws that are wrong, mean reward of the batch's, and its loss, by step",
    },
}


def draw_stack(name: str, history: History, path: Path) -> None:
    """Loss (nats per completion token) of training batches and of the rows that select, and how evenly experts are
    used, by step, as a PNG.

    The busiest expert is that of the one worst site, in times its fair share; the balance loss is a mean over all.
    """
    train = [(line["step"], line["loss"]) for line in history if "loss" in line]
    selection = [(line["step"], line["selection_loss"]) for line in history if "selection_loss" in line]
    worst = [(line["step"], line["imbalance"]) for line in history if "imbalance" in line]
    mean = [(line["step"], line["load_balance"]) for line in history if "load_balance" in line]
    aligned = next((dict(words) for key, words in ALIGNED.items() if any(key in line for line in history)), None)
    fell = f"{selection[0][1]:.3f} to {min(loss for _, loss in selection):.3f}" if selection else "not measured"
    with style():
        unit = aligned["unit"] if aligned else "Nats per completion token, by optimizer step"
        figure = new_figure(8.4, 2.9, f"{name}: selection loss {fell}", unit)
        losses, experts = figure.subplots(1, 2, width_ratios=(3, 2))
        losses.plot(*zip(*train, strict=True), color=PALE_BLUE, linewidth=1.2, label="training batch")
        losses.plot(
            *zip(*selection, strict=True), color=BLUE, linewidth=2, marker="o", markersize=4, label="rows that select"
        )
        if aligned:
            seen = [(line["step"], line[aligned["key"]]) for line in history if aligned["key"] in line]
            losses.plot(*zip(*seen, strict=True), color=GOLD, linewidth=1.6, label=aligned["label"])
        losses.legend(loc="best" if aligned else "upper right")
        experts.plot(*zip(*worst, strict=True), color=GREY, linewidth=1.2, label="busiest expert of the worst site")
        experts.plot(*zip(*mean, strict=True), color=GOLD, linewidth=1.6, label="balance loss, mean over sites")
        experts.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
        experts.set_title("use of the experts; 1 is even", loc="left", fontsize=9.5)
        experts.set_ylim(0.9, None)
        experts.legend(loc="center right", fontsize=8)
        for axes in (losses, experts):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y", color=FAINT, linewidth=0.8)
            axes.set_axisbelow(True)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
