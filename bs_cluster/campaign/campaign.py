"""What every part of a campaign is about: its config, its store, its domains in curriculum order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bs_cluster.config.identity import config_digest, curriculum
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.report.folder import report_folder
from bs_cluster.store.store import Store


@dataclass(frozen=True)
class Campaign:
    """``domains`` is the order in which they train; ``D`` in shapes follows it."""

    config: CampaignConfig
    store: Store
    domains: tuple[str, ...]

    @classmethod
    def of(cls, config: CampaignConfig) -> Campaign:
        """The campaign that ``config`` describes. Raises ConfigError where the domains have no order."""
        return cls(config, Store(config.store.uri, config.campaign), curriculum(config))

    @property
    def name(self) -> str:
        return self.config.campaign

    @property
    def all_closed(self) -> bool:
        """Whether every domain has had its last round."""
        return {record.domain for record in self.store.domains()} >= set(self.domains)

    def report_folder(self) -> Path:
        """Where this machine keeps the report's files: beside a local store, else in the user's cache."""
        return report_folder(self.config.store.uri, self.name, self.config.base.cache_dir)

    @property
    def ray_run(self) -> str:
        """The name of its training run. Ray Train restores state by name: a changed config is another run, and so is
        the same one after stacks were retired."""
        return f"{self.name}-{config_digest(self.config)[:12]}-{len(self.store.retirements())}"

    @property
    def ray_storage(self) -> str:
        """Ray Train's own bookkeeping; every node must reach it, like the store."""
        if "://" in self.config.store.uri:
            parts = urlsplit(self.config.store.uri)
            return parts._replace(path=f"{parts.path.rstrip('/')}/{self.name}/ray").geturl()
        return str(Path(self.config.store.uri).resolve() / self.name / "ray")
