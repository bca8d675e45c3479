"""What a sync reads of a store, once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from bs_cluster.answer_file import ANSWERS, read_answers
from bs_cluster.certificate import CERTIFICATE, Certificate
from bs_cluster.config.identity import domain_digest
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import ConfigError
from bs_cluster.promotion import LOSSES, read_losses
from bs_cluster.records import (
    BundleManifest,
    DomainRecord,
    JudgedAnswer,
    Manifest,
    ModeLosses,
    StackManifest,
    StackRef,
)
from bs_cluster.registry import descriptions
from bs_cluster.registry.runs import Point
from bs_cluster.retirement import Live
from bs_cluster.store import Store
from bs_cluster.store.bundle_config import bundle_config

HISTORY, CONFIG = "history.jsonl", "campaign.yaml"
Committed = list[tuple[StackRef, StackManifest]]
Bundle = tuple[int, str, BundleManifest]


@dataclass(frozen=True)
class Held:
    """``stacks`` and ``bundles`` whether in force or not, less what was erased or never came in."""

    store: Store
    stacks: Committed
    bundles: list[Bundle]
    domains: list[DomainRecord]
    live: Live
    newest: Mapping[str, str]  # by domain the manifest of its last live round

    @classmethod
    def of(cls, store: Store) -> Held:
        store = store.as_it_stands()
        erased, live = store.erased(), store.live()
        ever = (pair for pair in store.every_stack() if pair[0] not in live.waiting)
        return cls(
            store=store,
            stacks=[pair for pair in ever if not _is_erased(erased, pair[1])],
            bundles=[bundle for bundle in store.bundles() if not _is_erased(erased, bundle[2])],
            domains=store.domains(),
            live=live,
            newest={ref.stack.domain: ref.manifest for ref, _ in store.stacks()},
        )

    @cached_property
    def certificates(self) -> Mapping[str, Certificate | None]:
        """By a bundle's manifest."""
        return {digest: self._certificate(manifest) for _, digest, manifest in self.bundles}

    @cached_property
    def configs(self) -> list[CampaignConfig]:
        """Of the bundles, newest first."""
        found = [self.config(manifest) for *_, manifest in reversed(self.bundles)]
        return [config for config in found if config is not None]

    def config_of(self, manifest: StackManifest) -> CampaignConfig | None:
        """The settings that a stack was trained with, where a bundle tells them."""
        domain = manifest.stack.domain
        named = (config for config in self.configs if any(section.name == domain for section in config.domains))
        return next((config for config in named if domain_digest(config, domain) == manifest.config_digest), None)

    def config(self, manifest: BundleManifest) -> CampaignConfig | None:
        """The settings that a bundle holds; None where it has none, or some of another version of this program."""
        if all(entry.name != CONFIG for entry in manifest.files):
            return None
        try:
            return bundle_config(self.store, manifest)
        except ConfigError:
            return None

    def losses(self, manifest: BundleManifest) -> ModeLosses | None:
        """What a bundle's rows lose; None of one that was committed without them."""
        data = self._file(manifest, LOSSES)
        return None if data is None else read_losses(data)

    def answers(self, manifest: BundleManifest) -> list[JudgedAnswer]:
        data = self._file(manifest, ANSWERS)
        return [] if data is None else read_answers(data)

    def history(self, manifest: StackManifest) -> list[Point]:
        """The learning curves that a stack carries."""
        data = self.store.get_bytes(manifest.file(HISTORY).sha256)
        return descriptions.parse_history(data.decode(), manifest.stack.name)

    def _certificate(self, manifest: BundleManifest) -> Certificate | None:
        data = self._file(manifest, CERTIFICATE)
        return None if data is None else Certificate.from_json(data)

    def _file(self, manifest: BundleManifest, name: str) -> bytes | None:
        entry = next((entry for entry in manifest.files if entry.name == name), None)
        return None if entry is None else self.store.get_bytes(entry.sha256)


def _is_erased(erased: Collection[str], manifest: Manifest) -> bool:
    """Whether files of it were erased on request, so that MLflow, wiped, cannot have it again."""
    return any(entry.sha256 in erased for entry in manifest.files)
