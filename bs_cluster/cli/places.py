"""Where a command finds a campaign: ``--config FILE [key=value …]`` as the jobs take it, or ``--campaign`` in
``--store``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bs_cluster.errors import NotInStoreError, UsageError

if TYPE_CHECKING:
    from bs_cluster.config import CampaignConfig
    from bs_cluster.records import BundleManifest
    from bs_cluster.store import Store

STORE_VARIABLE = "BS_CLUSTER_STORE"


def add_config(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument(
        "--config", metavar="FILE", required=required, help="a campaign's YAML, and overrides after it: key=value …"
    )
    parser.add_argument("--set", metavar="key=value", action="append", default=[], help=argparse.SUPPRESS)


def add_campaign(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--campaign", metavar="NAME", help="the campaign's name in --store, where there is no --config")
    parser.add_argument(
        "--store", metavar="URI", help=f"folder or object store (default: ${STORE_VARIABLE}, else stacks_store here)"
    )


def config_of(arguments: argparse.Namespace) -> CampaignConfig:
    """The config that ``--config`` names, overrides applied. Raises ConfigError."""
    from bs_cluster.config import load_config  # noqa: PLC0415  # pydantic

    return load_config(arguments.config, arguments.set)


def name_of(arguments: argparse.Namespace) -> str:
    """The campaign's name. Raises UsageError where it is not said, or said twice."""
    return _place(arguments)[1]


def open_store(arguments: argparse.Namespace) -> Store:
    """The campaign's store. Raises UsageError where a folder holds no such campaign, naming those that it has."""
    return _open(*_place(arguments))


def store_of(config: CampaignConfig) -> Store:
    """The store that a config names. Raises as ``open_store`` does."""
    return _open(config.store.uri, config.campaign)


def _open(uri: str, campaign: str) -> Store:
    from bs_cluster.store import Store  # noqa: PLC0415  # pyarrow and torch; --help must not wait for them

    store = Store(uri, campaign)
    here = Path(uri)
    if "://" not in uri and not (here / campaign / "refs").is_dir():
        known = sorted(path.parent.name for path in here.glob("*/refs")) if here.is_dir() else []
        held = f"; it holds {', '.join(known)}" if known else ""
        raise UsageError(f"campaign {campaign!r} has nothing in {store.uri}{held}. Train it, or name another --store")
    return store


def _place(arguments: argparse.Namespace) -> tuple[str, str]:
    if arguments.config:
        if arguments.campaign or arguments.store:
            raise UsageError("--config says which campaign and store; leave --campaign and --store out")
        config = config_of(arguments)
        return config.store.uri, config.campaign
    if arguments.set:
        raise UsageError("key=value overrides a --config; name one")
    if not arguments.campaign:
        raise UsageError("which campaign? Name it with --config FILE, or with --campaign NAME and --store URI")
    return arguments.store or os.environ.get(STORE_VARIABLE) or "stacks_store", arguments.campaign


def bundle_of(store: Store, number: int | None) -> tuple[int, str, BundleManifest]:
    """(number, digest, manifest) of bundle ``number``; of the champion, the one that is served, without a number."""
    bundles = store.bundles()
    if not bundles:
        raise NotInStoreError(f"campaign {store.campaign!r} has no bundle in {store.uri} yet; its job has to finish")
    if number is None:
        champion = store.standing().champion
        if champion is None:
            raise NotInStoreError(
                f"campaign {store.campaign!r} has no champion: name a bundle with --bundle N, or promote one with "
                "bs_cluster bundles promote N"
            )
        number = champion.bundle
    found = next((bundle for bundle in bundles if bundle[0] == number), None)
    if found is None:
        raise UsageError(f"campaign {store.campaign!r} has no bundle {number}; it has 1 to {bundles[-1][0]}")
    return found


def new_folder(name: str) -> Path:
    """What ``--to`` names. Raises UsageError where something is there already."""
    folder = Path(name)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"--to {folder}: there is something already; name a folder that is new or empty")
    return folder
