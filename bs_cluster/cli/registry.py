"""MLflow's copy of a campaign: ``sync`` brings it up to the store, from nothing if need be."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.store import Store

HELP = "bring MLflow up to the store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    sync = actions.add_parser("sync", help="register what MLflow lacks; run it again at will")
    places.add_campaign(sync)
    add_tracking(sync)


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a campaign's MLflow."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="http(s)://… or sqlite:////absolute/path.db (default: the config's, else $MLFLOW_TRACKING_URI, else the "
        "one beside a local store)",
    )
    parser.add_argument("--experiment", help="MLflow's experiment (default: the config's, else brainstacks)")


def tracking_of(arguments: argparse.Namespace, store: Store) -> tuple[str, str] | None:
    """The MLflow that holds a campaign and the experiment there; None where none is named and none lies beside."""
    section = places.config_of(arguments).registry if arguments.config else None
    named = arguments.tracking_uri or (section and section.tracking_uri) or os.environ.get("MLFLOW_TRACKING_URI")
    beside = Path(store.uri) / "mlflow.db"  # where a campaign on a local store keeps it
    if not named and "://" not in store.uri and beside.is_file():
        named = f"sqlite:///{beside.resolve()}"
    return (named, arguments.experiment or (section.experiment if section else "brainstacks")) if named else None


def run(arguments: argparse.Namespace, output: Output) -> int:
    store = places.open_store(arguments)
    tracking = tracking_of(arguments, store)
    if tracking is None:
        raise UsageError("which MLflow? Name it with --tracking-uri or MLFLOW_TRACKING_URI")
    from bs_cluster.registry import Registry  # noqa: PLC0415  # MLflow takes seconds to import

    uri, experiment = tracking
    registry = Registry(uri, store.campaign, experiment)
    found = registry.sync(store)
    registry.settle()
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
