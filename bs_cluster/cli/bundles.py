"""What a campaign can serve: its bundles, newest last."""

from __future__ import annotations

import argparse

from bs_cluster.cli import places
from bs_cluster.cli.output import Output, table

HELP = "list what a campaign can serve"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    places.add_campaign(actions.add_parser("list", help="every bundle with its domains and numbers"))


def run(arguments: argparse.Namespace, output: Output) -> int:
    found = places.open_store(arguments).bundles()
    rows = [(number, len(bundle.stacks), " ".join(bundle.domains)) for number, _, bundle in found]
    value = [{"number": number, "digest": digest, **bundle.to_dict()} for number, digest, bundle in found]
    output.show(value, table(("bundle", "stacks", "domains"), rows))
    return 0
