"""The settings that a bundle holds."""

from __future__ import annotations

from bs_cluster.config import yaml12
from bs_cluster.config.parse import parse_config
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.records import BundleManifest
from bs_cluster.store.store import Store


def bundle_config(store: Store, bundle: BundleManifest) -> CampaignConfig:
    """The settings that a bundle was made with, as it holds them."""
    origin = f"campaign.yaml of bundle {bundle.number}"
    text = yaml12.decode(store.get_bytes(bundle.file("campaign.yaml").sha256), origin)
    return parse_config(text, origin=origin)
