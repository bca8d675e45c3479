"""What a config decides: the order of the domains, what a campaign may never change, and the digests of what a stack,
a bundle and a run depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bs_cluster.config.conflicts import problems, shown
from bs_cluster.config.rounds import RoundSection
from bs_cluster.config.schema import CampaignConfig, DomainSection, TrainingSection
from bs_cluster.errors import ConfigError
from bs_cluster.records import canonical_json, sha256_hex

# How a stack is computed, not which stack comes out: left out of its digest, so that a run may go on elsewhere.
_TRAINING_PLACEMENT = {
    "num_workers",
    "min_workers",
    "resize_every_s",
    "per_device_batch",
    "use_gpu",
    "cpus_per_worker",
    "threads_per_worker",
    "zero_stage",
    "offload_optimizer",
    "gradient_checkpointing",
    "eval_batch_tokens",
    "checkpoint_every_s",
    "max_failures",
    "start_timeout_s",
    "hang_timeout_s",
    "answer_timeout_s",
}
# How a meta-router is made and judged. Counted up with every change of that: a campaign that is complete makes itself a
# new bundle by the next run, and no stack is trained for it.
ROUTING = 2
_PER_DOMAIN = {"steps", "max_rounds", "learning_rate"}


def curriculum(config: CampaignConfig) -> tuple[str, ...]:
    """Domain names in training order: every domain after those in its ``after``, otherwise as listed.

    Raises ConfigError when no such order exists.
    """
    order: list[str] = []
    waiting = list(config.domains)
    while waiting:
        ready = next((domain for domain in waiting if set(domain.after) <= set(order)), None)
        if ready is None:
            raise ConfigError(problems(config))
        waiting.remove(ready)
        order.append(ready.name)
    return tuple(order)


def effective_domain(config: CampaignConfig, name: str) -> DomainSection:
    """The domain's section with ``steps``, ``max_rounds`` and ``learning_rate`` filled from ``training``."""
    domain = config.domain(name)
    filled = {key: getattr(config.training, key) for key in _PER_DOMAIN if getattr(domain, key) is None}
    return domain.model_copy(update=filled)


def stacks_of_entries(config: CampaignConfig, name: str) -> tuple[int, ...]:
    """How many stacks each entry of a domain's rounds may make."""
    own = effective_domain(config, name)
    return tuple(1 if entry.aligned else own.max_rounds or 1 for entry in own.rounds)


def most_stacks(config: CampaignConfig, name: str) -> int:
    """Stacks of a domain at most: every round of its own committed."""
    return sum(stacks_of_entries(config, name))


def campaign_identity(config: CampaignConfig) -> dict[str, Any]:
    """JSON-ready settings that every stack of a campaign must share, or they could not be fused on one base."""
    base = {"model", "revision", "quantization", "double_quant", "compute_dtype"}
    if config.base.model.startswith("random:"):  # of any other it says nothing
        base |= {"random"}
    return {
        "base": config.base.model_dump(mode="json", include=base),
        "data": config.data.model_dump(mode="json", include={"template"}),
        "stack": config.stack.model_dump(mode="json"),
        "null_space": config.null_space.model_dump(mode="json", include={"space"}),
    }


def identity_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each setting in which two campaign identities differ; ``old`` is what the store holds."""
    before, now = _flat(old), _flat(new)
    return [
        f"{key} = {shown(now.get(key))}: this campaign was begun with {shown(before.get(key))}; "
        "put that back, or start another campaign"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def settings_of(config: CampaignConfig, domain: str, entry: RoundSection) -> TrainingSection:
    """``training`` as one round of a domain has it: its own steps, rate and batch."""
    own = effective_domain(config, domain)
    settings: dict[str, Any] = {"steps": own.steps, "learning_rate": own.learning_rate, "max_rounds": own.max_rounds}
    if entry.aligned:
        names = ("steps", "learning_rate", "per_device_batch", "eval_every")
        settings = {name: getattr(entry, name) for name in names}
        settings["global_batch"] = entry.units_of_a_step
        settings["warmup_steps"] = min(config.training.warmup_steps, entry.steps // 10)
    return config.training.model_copy(update=settings)


def domain_digest(config: CampaignConfig, name: str) -> str:
    """SHA-256 (hex) of everything that decides how domain ``name`` trains.

    The batch counts as one number, ``global_batch``: losses are token-weighted means over it, so how it is dealt out
    to workers must not change a stack, and a run may resume on another number of them. Placement (workers, devices,
    threads, micro-batch, ZeRO stage, memory savers, retries, who draws answers), evaluators, meta-router, how answers
    are checked, store and registry do not count, nor do the other domains: adding one leaves the digest alone.
    """
    training, data = config.training, config.data
    left_out = _TRAINING_PLACEMENT | _PER_DOMAIN
    decides = {
        "identity": campaign_identity(config),
        "data": data.model_dump(mode="json"),
        "training": training.model_dump(mode="json", exclude=left_out),
        "null_space": config.null_space.model_dump(mode="json"),
        "domain": effective_domain(config, name).model_dump(
            mode="json",
            exclude={
                "sources": {"__all__": {"verify", "tests"}},
                "rounds": {"__all__": {"per_device_batch", "rollouts"}},
            },
        ),
        "seed": config.seed,
    }
    return sha256_hex(canonical_json(decides))


def bundle_digest(config: CampaignConfig) -> str:
    """SHA-256 (hex) of everything that a bundle depends on: where it is stored and shown, and who is served, is left
    out."""
    decides = config.model_dump(mode="json", exclude={"store", "registry", "promotion"})
    return sha256_hex(canonical_json({**decides, "routing": ROUTING}))


def config_digest(config: CampaignConfig) -> str:
    """SHA-256 (hex) of the whole config."""
    return sha256_hex(canonical_json(config.model_dump(mode="json")))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
