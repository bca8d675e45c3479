"""What one would do instead, as differences to what is served: one panel for each kind of rows."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.evidence.compare import BASE, KINDS, OURS, RIVALS, SERVED, Method, difference
from benchmarks.evidence.record import Instead
from bs_cluster.report.style import BLUE, FAINT, GREY, INK, RED, new_figure

SHOWN: tuple[Method, ...] = (*RIVALS, *OURS[1:], BASE)
LINEAR = 0.2  # nats: beyond, the axis is logarithmic, or the sum of all LoRAs would hide everything else


def draw(campaigns: Sequence[Instead]) -> Figure:
    figure = new_figure(
        11.0,
        0.34 * len(SHOWN) + 0.7,
        "What one would do instead, less what is served",
        "Nats per completion token, paired by row; left of the line the other is better than ours. Bars are 95 % "
        "intervals over rows of all campaigns together, small dots single campaigns. "
        f"Linear to {LINEAR} nats, then logarithmic",
    )
    kinds = {kind: rows for kind, rows in KINDS.items() if difference(campaigns, BASE.nats, kind)}
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, (kind, rows) in zip(panels, kinds.items(), strict=True):
        axes.set_title(rows, loc="left", fontsize=10.5, fontweight="bold", color=INK)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.axvline(0, color=GREY, linewidth=1.2)
        reach = LINEAR
        for place, method in enumerate(SHOWN):
            found = difference(campaigns, method.nats, kind, SERVED.nats)
            if found is None:
                continue
            colour = BLUE if found.high < 0 else RED if found.low > 0 else GREY
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=3.2, solid_capstyle="butt")
            axes.plot([found.mean], [place], "o", color=colour, markersize=6)
            seeds = [difference([one], method.nats, kind, SERVED.nats) for one in campaigns]
            means = [one.mean for one in seeds if one is not None]
            axes.plot(means, [place] * len(means), "o", color=INK, markersize=2.6, linestyle="none", zorder=3)
            reach = max(reach, abs(found.low), abs(found.high))
        axes.set_xscale("symlog", linthresh=LINEAR)
        ticks = [tick for tick in ((0.1, 0.2, 0.5) if reach < 1 else (0.1, 0.4, 1.0, 3.0, 10.0)) if tick <= reach]
        ticks = [-tick for tick in reversed(ticks)] + [0.0, *ticks]
        axes.set_xlim(-1.25 * reach, 1.25 * reach)
        axes.set_xticks(ticks, [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in ticks], fontsize=7.5)
        axes.minorticks_off()
    panels[0].set_yticks(range(len(SHOWN)), [f"{method.name} *" if method.told else method.name for method in SHOWN])
    panels[0].set_ylim(len(SHOWN) - 0.4, -0.6)
    return figure
