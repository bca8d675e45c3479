"""Which settings MLflow shows: a campaign's that differ from the defaults, and what made a round or a bundle."""

from __future__ import annotations

from bs_cluster.config.identity import effective_domain
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.records import StackId
from bs_cluster.registry.descriptions import flatten

# Of what decides how a round trains (``config.identity.domain_digest``), what a person compares rounds by.
MADE_BY = {
    "base": {"model", "quantization"},
    "data": {"template", "max_length", "train_rows"},
    "stack": {"rank", "experts", "top_k", "alpha"},
    "training": {
        *("steps", "learning_rate", "global_batch", "optimizer", "b_lr_ratio", "weight_decay", "warmup_steps"),
        *("scheduler", "max_grad_norm", "load_balance", "context", "packing"),
    },
    "null_space": {"enabled", "space", "method", "max_rank", "max_share", "energy"},
}
OF_DOMAIN = {"steps", "learning_rate"}


def campaign_parameters(config: CampaignConfig) -> dict[str, str]:
    """Every setting that differs from its default, ``{"data.max_length": "96"}``; whole is ``campaign.yaml``."""
    return flatten(config.model_dump(mode="json", exclude_defaults=True))


def round_parameters(config: CampaignConfig, stack: StackId) -> dict[str, str]:
    """The hyperparameters of a round by their names in the config, its domain's own in the place of the general."""
    made = config.model_dump(mode="json", include=MADE_BY)
    made["training"] |= effective_domain(config, stack.domain).model_dump(mode="json", include=OF_DOMAIN)
    return flatten({"seed": config.seed, **made})


def bundle_parameters(config: CampaignConfig) -> dict[str, str]:
    """What made a bundle of its stacks: the meta-router, less the paper's network where that is not what is served."""
    left_out = set() if config.router.kind == "network" else {"network", "targets"}
    return flatten({"router": config.router.model_dump(mode="json", exclude=left_out)})
