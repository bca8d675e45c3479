"""MLflow's copy of a campaign: ``sync`` brings it up to the store, from nothing if need be."""

from __future__ import annotations

import argparse
import os

from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import ConfigError

HELP = "bring MLflow up to the store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    sync = actions.add_parser("sync", help="register what MLflow lacks; run it again at will")
    places.add_campaign(sync)
    sync.add_argument(
        "--tracking-uri",
        metavar="URI",
        default=os.environ.get("MLFLOW_TRACKING_URI"),
        help="http(s)://… or sqlite:////absolute/path.db (default: $MLFLOW_TRACKING_URI)",
    )
    sync.add_argument("--experiment", default="brainstacks")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if not arguments.tracking_uri:
        raise ConfigError(["which MLflow? Name it with --tracking-uri or MLFLOW_TRACKING_URI"])
    store = places.open_store(arguments)
    from bs_cluster.registry import Registry  # noqa: PLC0415  # MLflow takes seconds to import

    found = Registry(arguments.tracking_uri, arguments.campaign, arguments.experiment).sync(store)
    made = {
        "stacks": [stack.name for stack in found.stacks],
        "rejected": [stack.name for stack in found.rejected],
        "domains": list(found.domains),
        "bundles": list(found.bundles),
        "seconds": found.seconds,
    }
    new = [f"{kind} {', '.join(map(str, names))}" for kind, names in made.items() if isinstance(names, list) and names]
    output.show(made, f"new in MLflow: {'; '.join(new)}" if new else "MLflow has everything that the store has")
    return 0
