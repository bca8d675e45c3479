"""A campaign's rows: read, split and encoded once, in a task, then fetched by reference wherever they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from bs_cluster.base import load_tokenizer
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.encode import encode_rows
from bs_cluster.data.load import load_domains
from bs_cluster.training.session import DomainRows


def start_encoding(config: CampaignConfig, domains: tuple[str, ...]) -> dict[str, ray.ObjectRef]:
    """A reference to each domain's rows at once; they are there when the task is done. The driver owns them."""
    task = ray.remote(_encode).options(num_cpus=0, num_returns=len(domains), max_retries=2)
    found: Any = task.remote(config.model_dump(mode="json"))
    return dict(zip(domains, found if len(domains) > 1 else [found], strict=True))


def fetch(handles: Mapping[str, ray.ObjectRef]) -> dict[str, DomainRows]:
    return dict(zip(handles, ray.get(list(handles.values())), strict=True))


def _encode(config: dict[str, Any]) -> Any:
    encoded = list(encode_domains(CampaignConfig.model_validate(config)).values())
    return encoded if len(encoded) > 1 else encoded[0]  # as many as ``num_returns`` said


def encode_domains(config: CampaignConfig) -> dict[str, DomainRows]:
    """Every domain's encoded splits, in curriculum order."""
    tokenizer = load_tokenizer(config.base)
    return {
        name: DomainRows(
            train=tuple(encode_rows(data.train, tokenizer, config.data)),
            validation=tuple(encode_rows(data.validation, tokenizer, config.data)),
            sweep=tuple(encode_rows(data.sweep, tokenizer, config.data)),
            fingerprint=data.fingerprint,
            counts=data.counts,
        )
        for name, data in load_domains(config, tokenizer).items()
    }
