"""What a campaign can serve: its bundles, newest last."""

from __future__ import annotations

import argparse

from bs_cluster.cli import places
from bs_cluster.cli.output import Output

HELP = "list what a campaign can serve"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    places.add_campaign(actions.add_parser("list", help="every bundle with its domains and numbers"))


def run(arguments: argparse.Namespace, output: Output) -> int:
    found = places.open_store(arguments).bundles()
    lines = ["bundle  stacks  domains"]
    lines += [f"{number:>6}  {len(b.stacks):>6}  {' '.join(b.domains)}" for number, _, b in found]
    value = [{"number": number, "digest": digest, **bundle.to_dict()} for number, digest, bundle in found]
    output.show(value, "\n".join(lines))
    return 0
