"""Train, route and report a campaign on the Ray cluster at hand; run it again to go on. What ``jobs/outer_loop.py``
does."""

from __future__ import annotations

import argparse

from bs_cluster.cli import places
from bs_cluster.cli.output import Output

HELP = "train, route and report a campaign, or go on with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    places.add_config(parser, required=True)
    parser.add_argument(
        "--json", action="store_true", help="print each event as a JSON object on a line, and words on standard error"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    config = places.config_of(arguments)
    # Heavy, all of it; wrong settings are told at once.
    from bs_cluster.campaign.connect import connect  # noqa: PLC0415
    from bs_cluster.campaign.console import Console, EventLines, words_on_stderr  # noqa: PLC0415

    console = EventLines(words_on_stderr()) if output.as_json else Console()
    connect(config)
    from bs_cluster.campaign.run import run_campaign  # noqa: PLC0415

    return run_campaign(config, console)
