"""The one validated description of a campaign (DESIGN: sections 2 and 4)."""

from bs_cluster.config.conflicts import problems
from bs_cluster.config.identity import (
    campaign_identity,
    curriculum,
    domain_digest,
    effective_domain,
    identity_differences,
)
from bs_cluster.config.parse import load_config, parse_config, to_yaml
from bs_cluster.config.schema import (
    PROJECTIONS,
    BaseSection,
    CampaignConfig,
    DataSection,
    DomainSection,
    NullSpaceSection,
    RegistrySection,
    RouterSection,
    StackSection,
    StoreSection,
    SweepSection,
    TargetsSection,
    TrainingSection,
)
from bs_cluster.config.section import Section
from bs_cluster.config.sources import Source, SourceSection

__all__ = [
    "PROJECTIONS",
    "BaseSection",
    "CampaignConfig",
    "DataSection",
    "DomainSection",
    "NullSpaceSection",
    "RegistrySection",
    "RouterSection",
    "Section",
    "Source",
    "SourceSection",
    "StackSection",
    "StoreSection",
    "SweepSection",
    "TargetsSection",
    "TrainingSection",
    "campaign_identity",
    "curriculum",
    "domain_digest",
    "effective_domain",
    "identity_differences",
    "load_config",
    "parse_config",
    "problems",
    "to_yaml",
]
