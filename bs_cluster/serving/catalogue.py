"""Which bundles are served, under which model ids: the store's champion, its challenger, and their ways to answer.

    embedded              the champion, routed                 embedded:math    the champion's domain math alone
    embedded@champion     the same                             embedded:base    the base alone
    embedded@challenger   the newest bundle that was not let in its place, if there is one

All of a campaign's bundles stand on one base and share their stacks, which never change once committed. So one model in
memory serves them all, and another champion is some more stacks and a meta-router of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from bs_cluster.errors import NotInStoreError
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.serving.residency import Residency
from bs_cluster.serving.runtime import BundleRuntime
from bs_cluster.store.store import Store


@dataclass(frozen=True)
class Model:
    """What a model id stands for: a bundle, and the gates of every domain, None where the meta-router decides."""

    id: str
    bundle: BundleRuntime
    gates: Mapping[str, float] | None


class Catalogue:
    """``models`` are by id. They are replaced whole, so that who has looked one up keeps what it found."""

    def __init__(self, store: Store, number: int | None):
        """``number`` keeps to that bundle, whoever is champion."""
        self.campaign, self._store, self._number = store.campaign, store, number
        self._bundles: dict[str, BundleRuntime] = {}
        self.serving: dict[str, str] = {}
        self.models: dict[str, Model] = {}
        self.since = 0

    def wanted(self) -> dict[str, str]:
        """Digests of the bundles to serve, as the store has it now, by alias; that without an alias is the default.
        Raises NotInStoreError where there is none."""
        if self._number is not None:
            return {"": next(digest for number, digest, _ in self._store.bundles() if number == self._number)}
        standing = self._store.standing()
        if standing.champion is None:
            raise NotInStoreError(f"campaign {self.campaign!r} has no champion any more in {self._store.uri}")
        found = {"": standing.champion.manifest, standing.champion.alias: standing.champion.manifest}
        if standing.challenger is not None:
            found[standing.challenger.alias] = standing.challenger.manifest
        return found

    def load(self, wanted: Mapping[str, str], stacked: StackedBase, residency: Residency) -> None:
        """Serves these bundles from now on, with as many of their stacks in memory as ``residency`` has room for. Where
        one cannot be loaded, it raises and serves what it did."""
        bundles = dict(self._bundles)
        for digest in set(wanted.values()) - set(bundles):
            manifest = self._store.bundle(digest)
            device = stacked.base.model.device
            bundles[digest] = BundleRuntime(self._store, manifest, device, stacked, residency.expect)
        default = bundles[wanted[""]]
        models = [Model(self._id("@", alias), bundles[digest], None) for alias, digest in wanted.items()]
        models += [Model(self._id(":", domain), default, only(default, domain)) for domain in default.domains]
        models.append(Model(self._id(":", "base"), default, only(default, None)))
        self.models = {model.id: model for model in models}
        self._bundles = {digest: bundles[digest] for digest in set(wanted.values())}
        self.serving, self.since = dict(wanted), int(time.time())

    def _id(self, sign: str, name: str) -> str:
        return f"{self.campaign}{sign}{name}" if name else self.campaign

    def bundle(self, alias: str) -> BundleRuntime:
        return self._bundles[self.serving[alias]]


def only(bundle: BundleRuntime, domain: str | None) -> dict[str, float]:
    """Gates of every domain of a bundle with this one alone at full strength, or none."""
    return {name: float(name == domain) for name in bundle.domains}
