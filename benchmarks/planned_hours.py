"""What a plan says of a finished campaign's time, against the time that it took: by phase, without starts.

    python -m benchmarks.planned_hours --campaigns stacks_store:embedded stacks_store:aligned

Planned as ``bs_cluster plan`` does, on the node that is assumed where no other is named, with rows as long as the
campaign's training rows are in the mean, and as many tokens learned. The campaign's own report tells what it took.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.evidence.campaign import Campaign
from bs_cluster.planning.hardware import default_node, hardware
from bs_cluster.planning.plan import Planner
from bs_cluster.planning.schedule import HOUR
from bs_cluster.quiet import quieten
from bs_cluster.report.markdown import table

PHASES = {
    "train": ("training_h", "closing_h"),
    "sweep": ("sweep_h",),
    "router": ("router_h",),
    "answers": ("answers_h",),
}


def compared(campaign: Campaign, node: str | None) -> list[list[object]]:
    """A line a phase, and one for all: planned and measured seconds, and their ratio."""
    config = campaign.config
    on = hardware(node or default_node(config.training.use_gpu))
    rows = [row for rows in campaign.rows.values() for row in rows.train]
    tokens, learned = (
        round(statistics.fmean(map(of, rows)))
        for of in (lambda row: len(row.input_ids), lambda row: row.completion_length)
    )
    planner = Planner(config, on, tokens, learned)
    cost, took = planner.cost(config, planner.made(config)), campaign.report["timing"]
    lines = [(phase, HOUR * sum(getattr(cost, part) for part in parts), took[phase]) for phase, parts in PHASES.items()]
    lines.append(("in all", sum(line[1] for line in lines), sum(line[2] for line in lines)))
    return [
        [
            config.campaign,
            f"{tokens}, {learned}",
            phase,
            f"{planned:.0f}",
            f"{measured:.0f}",
            f"{planned / measured:.2f}",
        ]
        for phase, planned, measured in lines
    ]


def main() -> None:
    quieten()
    parser = argparse.ArgumentParser(description="A plan's hours against those that campaigns took.")
    parser.add_argument("--campaigns", nargs="+", required=True, help="store:name of finished campaigns")
    parser.add_argument("--on", metavar="NODE", help="a node of the hardware file (default: as bs_cluster plan)")
    arguments = parser.parse_args()
    rows: list[list[object]] = []
    for named in arguments.campaigns:
        rows += compared(Campaign.named(named), arguments.on)
    print(
        table(["campaign", "tokens a row, learned", "phase", "planned, s", "measured, s", "planned / measured"], rows)
    )


if __name__ == "__main__":
    main()
