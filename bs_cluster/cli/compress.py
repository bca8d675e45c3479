"""``domains compress``: what a domain's rounds would lose and save as one stack of the same shape, and, where it loses
little enough, that stack in their place.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bs_cluster.cli import places, retire
from bs_cluster.cli.output import FOUND, Output
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.campaign.compress import Compression


def add_arguments(actions: Any) -> None:
    compress = actions.add_parser("compress", help="measure a domain's rounds merged into one stack, and serve that")
    places.add_config(compress, required=True)
    compress.add_argument("domain", metavar="DOMAIN")
    compress.add_argument(
        "--tolerance", type=float, default=0.01, metavar="NATS", help="that it may lose, whole interval (default: 0.01)"
    )
    compress.add_argument("--commit", action="store_true", help="put it in the rounds' place, if it is within")
    compress.add_argument("--out", type=Path, metavar="FOLDER", help="keep the merged stack there, as an adapter")


def run(arguments: argparse.Namespace, output: Output) -> int:
    config = places.config_of(arguments)
    store, out = places.store_of(config), arguments.out
    if out is not None and out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty; name a new folder, so that it holds this stack alone")
    from bs_cluster.campaign.compress import compress, publish_merged  # noqa: PLC0415  # torch; wrong usage goes first

    with tempfile.TemporaryDirectory() as spare:
        folder = out or Path(spare)
        found = compress(store, config, arguments.domain, arguments.tolerance, folder, _say)
        value, lines = {**found.to_dict(), "retirement": None}, _told(found)
        if not (arguments.commit and found.within):
            lines[-1] += "; nothing is committed"
        else:
            request, retirement = publish_merged(store, found, folder)
            plan, more = retire.told(config, store, request, retirement, {})
            store.retire(retirement)
            value |= plan
            lines += [*more, f"done; what is left to do: bs_cluster run --config {arguments.config}"]
    if out is not None:
        lines.append(f"{out} holds the merged stack")
    output.show(value, "\n".join(lines))
    return 0 if found.within else FOUND


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _told(found: Compression) -> list[str]:
    verdict = "within" if found.within else "not within"
    return [
        f"{found.domain}: {', '.join(found.rounds)} as one stack, {found.change.rows} held-out rows",
        f"  loss   {found.loss:.3f} -> {found.merged_loss:.3f}, change {found.change}",
        f"         {found.rounds[0]} alone: {found.first_round}; none of them: {found.parent:.3f}",
        f"  bytes  {found.bytes:,} -> {found.merged_bytes:,}",
        f"  a pass {found.seconds:.2f} s -> {found.merged_seconds:.2f} s",
        f"  {found.missed:.1%} of what the rounds write at a site is missed, in the mean",
        f"the change is {verdict} the tolerance of {found.tolerance:g} nats per token",
    ]
