"""Figures of losses with their 95 % intervals: every mode by whose rows they are, and regret by routing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bs_cluster.estimates import Estimate
from bs_cluster.report.inputs import ReportInputs
from bs_cluster.report.record import ALL, POLICIES, Report
from bs_cluster.report.style import BLUE, FAINT, GOLD, GREY, INK, PALE_BLUE, label_x, new_figure
from bs_cluster.report.wording import TABLE_MODES, signed
from bs_cluster.sweep.owners import kind_of

MODE_COLOURS = {
    "base": "#c3cad3",
    "isolated": PALE_BLUE,
    "parents": "#5b93b8",
    "ungated": GOLD,
    "best_single": "#d8c7a3",
    "routed": BLUE,
}


# Groups of bars side by side, past which they go on below.
OWNERS_A_LINE = 8


def loss_bars(inputs: ReportInputs, report: Report) -> Figure | None:
    """A group of bars per owner, a bar per mode with its interval; the oracle is outlined, it cannot be served. Rows of
    domains, mixed and foreign ones each begin a line."""
    modes, owners = report.modes(TABLE_MODES), report.measured_owners
    if not modes or not owners:
        return None
    subtitle = (
        f"Nats per completion token, lower is better; bars end at the mean, lines are 95 % intervals over rows. "
        f"On {report.rows_note}"
    )
    kinds = [list(group) for _, group in itertools.groupby(owners, lambda owner: kind_of(owner, report.domains))]
    lines = [kind[at : at + OWNERS_A_LINE] for kind in kinds for at in range(0, len(kind), OWNERS_A_LINE)]
    inches = max(1.3, 0.23 * len(modes) + 0.25)
    widest = max(len(line) for line in lines)
    size = max(7.2, inches * widest + 1.2), 1.0 + 2.4 * len(lines)
    figure = new_figure(*size, _bars_title(report), subtitle)
    for axes, line in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
        _bars(axes, report, modes, line)
        axes.set_xlim(-0.6, widest - 0.4)
        label_x(axes, line, inches, [f"{report.rows[owner]} rows" for owner in line])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(modes), fontsize=9, handlelength=1.1, columnspacing=1.6
    )
    return figure


def _bars(axes: Axes, report: Report, modes: Sequence[str], owners: Sequence[str]) -> None:
    width = 0.84 / len(modes)
    for index, mode in enumerate(modes):
        found = [(place, value) for place, o in enumerate(owners) if (value := report.loss[mode][o]) is not None]
        places = [place + (index - (len(modes) - 1) / 2) * width for place, _ in found]
        look: dict[str, Any] = (
            {"facecolor": "white", "edgecolor": INK, "linewidth": 0.9, "linestyle": (0, (2, 1.5))}
            if mode == "oracle"
            else {"color": MODE_COLOURS[mode]}
        )
        axes.bar(places, [value for _, value in found], width * 0.9, label=mode.replace("_", " "), **look)
        for x, (place, value) in zip(places, found, strict=True):
            estimate = report.losses[mode][owners[place]]
            if estimate is not None:
                axes.vlines(x, estimate.low, estimate.high, color=INK, linewidth=0.9, alpha=0.75)
            _value_over_bar(axes, x, value, value if estimate is None else estimate.high)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    axes.tick_params(axis="both", length=0)
    axes.set_ylabel("nats per token")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _value_over_bar(axes: Axes, place: float, value: float, top: float) -> None:
    """The bar's value, upright above its interval."""
    axes.annotate(
        f"{value:.2f}",
        (place, top),
        (0, 3),
        textcoords="offset points",
        rotation=90,
        ha="center",
        va="bottom",
        fontsize=7,
        color=INK,
    )


def _bars_title(report: Report) -> str:
    base, routed = report.losses["base"][ALL], report.losses["routed"][ALL]
    if base is None or routed is None:
        return "Loss by mode"
    return f"Over all domains' rows the loss goes from {base.mean:.2f} (base) to {routed.mean:.2f} (routed)"


def regret(inputs: ReportInputs, report: Report) -> Figure | None:
    """What each way of routing loses against the best combination in hindsight: a dot and its interval per policy,
    a panel for each group of rows."""
    regrets = report.router.regrets
    groups = [group for group in report.groups if any(by_owner[group] for by_owner in regrets.values())]
    if not groups:
        return None
    title = _regret_title(regrets["routed"][groups[0]], (regrets.get("label") or {}).get(groups[0]))
    subtitle = (
        "Regret: loss above each row's best combination in hindsight (nats/token); lines are 95 % intervals over rows"
    )
    policies = list(regrets)
    figure = new_figure(max(7.2, 3.6 * len(groups)), 0.42 * len(policies) + 0.6, title, subtitle)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        known = [(y, mode, value) for y, mode in enumerate(policies) if (value := regrets[mode][group]) is not None]
        for y, mode, value in known:
            colour = BLUE if mode == "routed" else GREY
            axes.hlines(y, value.low, value.high, color=colour, linewidth=2.4, alpha=0.55)
            axes.plot(value.mean, y, "o", color=colour, markersize=7 if mode == "routed" else 5.5)
            axes.annotate(
                signed(value.mean), (value.mean, y), (0, 6), textcoords="offset points",
                ha="center", fontsize=8, color=INK,
            )  # fmt: skip
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_title(f"{group}, {report.rows[group]} rows", loc="left", fontsize=10, color=INK)
        axes.set_yticks(range(len(policies)), [POLICIES[mode] for mode in policies])
        axes.set_ylim(len(policies) - 0.5, -0.75)
        axes.set_xlim(min([0.0, *(v.low for _, _, v in known)]) - 0.05 * _span(known), None)
        axes.set_xlabel("regret (nats/token)")
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def _span(known: list[tuple[int, str, Estimate]]) -> float:
    return max((value.high for _, _, value in known), default=1.0) - min([0.0, *(v.low for _, _, v in known)])


def _regret_title(routed: Estimate | None, label: Estimate | None) -> str:
    if routed is None:
        return "Regret by routing"
    title = f"Regret of the meta-router {routed.mean:.3f} nats"
    return title if label is None else f"{title}, by label {label.mean:.3f}"
