"""What every part of a campaign is about: its config, its store, its domains in curriculum order."""

from __future__ import annotations

from dataclasses import dataclass

from bs_cluster.config.identity import curriculum
from bs_cluster.config.schema import CampaignConfig
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
