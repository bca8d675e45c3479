"""A campaign's rows, read, split and encoded once by the driver, then fetched by reference."""

from __future__ import annotations

from transformers import AutoTokenizer

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.encode import encode_rows
from bs_cluster.data.load import load_domains
from bs_cluster.training.session import DomainRows


def encode_domains(config: CampaignConfig, folder: str) -> dict[str, DomainRows]:
    """Every domain's encoded splits, in curriculum order."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
