"""The domains of a campaign, in curriculum order: their rounds, losses and rows."""

from __future__ import annotations

import argparse

from bs_cluster.cli import places
from bs_cluster.cli.output import Output

HELP = "list a campaign's domains"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    places.add_campaign(actions.add_parser("list", help="closed domains and the rounds of an open one"))


def run(arguments: argparse.Namespace, output: Output) -> int:
    store = places.open_store(arguments)
    closed = store.domains()
    open_stacks = [ref.stack for ref, _ in store.stacks() if ref.stack.domain not in {r.domain for r in closed}]
    lines = ["domain               rounds     base    alone   train rows"]
    for record in closed:
        kept = sum(outcome.committed for outcome in record.rounds)
        lines.append(
            f"{record.domain:<18} {kept:>2} of {len(record.rounds)} {record.base_loss:>8.3f} {record.isolated:>8.3f} "
            f"{record.data_counts.get('train', 0):>12}"
        )
    lines += [f"{stack.domain:<18} round {stack.round} committed, still training" for stack in open_stacks]
    lines.append("losses in nats per completion token on the domain's validation rows")
    value = {"closed": [record.to_dict() for record in closed], "open": [stack.name for stack in open_stacks]}
    output.show(value, "\n".join(lines))
    return 0
