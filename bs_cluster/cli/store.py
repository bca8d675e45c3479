"""A campaign's bytes: ``verify`` follows every ref to its manifest and re-hashes every blob on the way."""

from __future__ import annotations

import argparse

from bs_cluster.cli import places
from bs_cluster.cli.output import FAILED, Output

HELP = "prove that a campaign's history is whole"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    places.add_campaign(actions.add_parser("verify", help="exit 1 and a line a problem, or nothing found"))


def run(arguments: argparse.Namespace, output: Output) -> int:
    store = places.open_store(arguments)
    problems = store.verify()
    output.show(problems, "\n".join(problems) if problems else f"{arguments.campaign}: sound")
    return FAILED if problems else 0
