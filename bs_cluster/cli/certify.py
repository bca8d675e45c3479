"""Compute a bundle's certificate again, from the store and the base alone, and hold the two against each other: every
domain's isolated logits to the bit, the losses that its statements rest on, their intervals, what the meta-router
chooses for rows that it never saw, all digests. It reads no config file, no source of rows and no MLflow. Exit 0 if all
agrees, 1 if something does not."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import FOUND, Output, table
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.campaign.agreement import Recomputed

HELP = "prove again, from the store alone, that adding domains broke nothing"
CHAMPION = "champion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    places.add_campaign(parser)
    parser.add_argument("--bundle", default=CHAMPION, metavar="N", help="bundle N (default: the champion)")
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="a quick look: N rows of each owner, no choices of the meta-router",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda; to the bit only where it is the same")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.rows is not None and arguments.rows < 1:
        raise UsageError(f"--rows {arguments.rows}: at least one row of each owner must be scored")
    if arguments.bundle != CHAMPION and not arguments.bundle.isdecimal():
        raise UsageError(f"--bundle {arguments.bundle}: a number, or {CHAMPION}")
    store = places.open_store(arguments)
    number = None if arguments.bundle == CHAMPION else int(arguments.bundle)
    bundle = places.bundle_of(store, number)[2]
    from bs_cluster.campaign.recompute import recompute  # noqa: PLC0415  # torch; wrong usage is told first

    found = recompute(store, bundle, arguments.device, arguments.rows, lambda line: print(line, file=sys.stderr))
    output.show(found.to_dict(), _told(found))
    return 0 if found.agrees else FOUND


def _told(found: Recomputed) -> str:
    rows = [(line.what, line.certified, line.recomputed, line.verdict, line.why) for line in found.lines]
    differing = sum(line.verdict == "differs" for line in found.lines)
    end = f"{found.scored} losses of rows were computed again"
    said = f"{differing} of {len(rows)} lines differ" if differing else f"none of {len(rows)} lines differs"
    header = ("", "certified", "recomputed", "verdict", "")
    return "\n".join([table(header, rows), f"certificate of bundle {found.bundle} of {found.campaign}: {said}; {end}"])
