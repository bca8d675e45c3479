"""Where a command finds a campaign: the arguments that name a store and a campaign in it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bs_cluster.errors import NotInStoreError

if TYPE_CHECKING:
    from bs_cluster.records import BundleManifest
    from bs_cluster.store.store import Store

STORE_VARIABLE = "BS_CLUSTER_STORE"


def add_campaign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--campaign", required=True, metavar="NAME")
    parser.add_argument(
        "--store",
        metavar="URI",
        default=os.environ.get(STORE_VARIABLE, "stacks_store"),
        help=f"folder or filesystem URI (default: ${STORE_VARIABLE}, else stacks_store here)",
    )


def open_store(arguments: argparse.Namespace) -> Store:
    """The campaign's store. Raises NotInStoreError where it holds no such campaign, naming those that it has."""
    from bs_cluster.store.store import Store  # noqa: PLC0415  # pyarrow and torch; --help must not wait for them

    store = Store(arguments.store, arguments.campaign)
    if not (store.domains() or store.stacks() or store.bundles()):
        here = Path(arguments.store)
        known = sorted(path.parent.name for path in here.glob("*/refs")) if here.is_dir() else []
        raise NotInStoreError(
            f"campaign {arguments.campaign!r} has nothing in {store.uri}"
            + (f"; it holds {', '.join(known)}" if known else "")
            + ". Train it, or name another --store"
        )
    return store


def newest_bundle(store: Store) -> BundleManifest:
    """The bundle that was committed last. Raises NotInStoreError where there is none."""
    bundles = store.bundles()
    if not bundles:
        raise NotInStoreError(f"campaign {store.campaign!r} has no bundle in {store.uri} yet; its job has to finish")
    return bundles[-1][2]
