"""A campaign's bytes: ``verify`` hashes every one of them and holds refs, records, manifests and history against each
other; ``repair`` mends what intact parts, or a copy, leave no doubt about; ``gc`` deletes what nothing committed leads
to; ``history`` tells every commit in order."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import FOUND, Output, table
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.store import Verified

HELP = "verify, repair and clean a campaign's store, tell its history"
DAYS = 7.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    places.add_campaign(actions.add_parser("verify", help="exit 1 and a line a problem where the store is not sound"))
    repair = actions.add_parser("repair", help="mend it, while nothing writes; nothing is deleted")
    places.add_campaign(repair)
    repair.add_argument("--from", dest="copy", metavar="URI", help="a store that holds a sound copy of this campaign")
    gc = actions.add_parser("gc", help="delete blobs that nothing committed leads to, and interrupted writes")
    places.add_campaign(gc)
    gc.add_argument(
        "--older-than-days", type=float, default=DAYS, metavar="N", help="more than your longest round (default: 7)"
    )
    places.add_campaign(actions.add_parser("history", help="every commit, in the order in which they came"))


def run(arguments: argparse.Namespace, output: Output) -> int:
    store = places.open_store(arguments)
    if arguments.action == "verify":
        found = store.verify()
        output.show({"sound": found.sound, **found.to_dict()}, _audit(store.campaign, found))
        return 0 if found.sound else FOUND
    if arguments.action == "repair":
        from bs_cluster.store import Store  # noqa: PLC0415  # see places

        repaired = store.repair(Store(arguments.copy, store.campaign) if arguments.copy else None)
        lines = [f"{mended.object}: {mended.what}" for mended in repaired.mended] or ["nothing was mended"]
        output.show(
            {"sound": repaired.left.sound, **repaired.to_dict()},
            "\n".join([*lines, _audit(store.campaign, repaired.left)]),
        )
        return 0 if repaired.left.sound else FOUND
    if arguments.action == "gc":
        if not arguments.older_than_days >= 0:
            raise UsageError(f"--older-than-days {arguments.older_than_days}: an age in days, 0 or more")
        gone = store.gc(arguments.older_than_days * 86_400)
        told = f"{len(gone.blobs)} blobs, {gone.bytes:,} bytes, and {len(gone.temporary)} interrupted writes deleted"
        output.show(gone.to_dict(), told)
        return 0
    entries = store.history()
    rows = [(entry.number, entry.ref, entry.digest()[:12]) for entry in entries]
    told = [{**entry.to_dict(), "digest": entry.digest()} for entry in entries]
    output.show(told, table(("n", "ref", "entry"), rows))
    return 0


def _audit(campaign: str, found: Verified) -> str:
    if found.sound:
        return f"{campaign} is sound: {found.refs} refs, {found.blobs} blobs, {found.bytes:,} bytes"
    lines = [f"{p.kind:<11} {p.object}: {p.what}; {p.way_out}" for p in found.problems]
    return "\n".join([*lines, f"{campaign} is not sound: {len(lines)} problem{'s' if len(lines) > 1 else ''}"])
