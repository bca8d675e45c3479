"""What a new domain's rows are worth before a campaign trains on them: how many stay, how long they are, whom they
repeat. Read as the campaign's job will read them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bs_cluster.config.schema import CampaignConfig, DataSection
from bs_cluster.data.domains import load_domains, read_rows
from bs_cluster.data.encode import encode_rows
from bs_cluster.data.near_duplicates import Splits, drop_near_duplicates
from bs_cluster.data.rows import DomainData
from bs_cluster.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowsCheck(Record):
    """``counts`` says what became of the rows, as in ``DomainData``. ``near`` counts those that say nearly what a
    held-out row of another domain says, by that domain. ``tokens`` holds the shortest, the median and the longest row
    and how many reach ``data.max_length``, where they are cut; it is empty without a tokenizer."""

    counts: dict[str, int]
    near: dict[str, int]
    tokens: dict[str, int]


def check_rows(config: CampaignConfig, name: str, tokenizer: PreTrainedTokenizerBase | None) -> RowsCheck:
    """Looks at the rows of domain ``name`` beside all others of ``config``. Raises DataError as the job would."""
    loaded = load_domains(config, tokenizer)
    own = loaded.pop(name)
    return RowsCheck(own.counts, _near(config, name, loaded), _tokens(config.data, own, tokenizer))


def _near(config: CampaignConfig, name: str, others: dict[str, DomainData]) -> dict[str, int]:
    threshold = config.data.near_duplicates or DataSection().near_duplicates
    assert threshold is not None
    read = [read_rows(source, name, config, Counter()) for source in config.domain(name).sources]
    rows = Splits(tuple(row for part in read for row in part), (), ())
    found = {}
    for other, data in others.items():
        _, apart = drop_near_duplicates([Splits((), data.validation, data.sweep), rows], threshold)
        found[other] = rows.size - apart.size
    return {other: count for other, count in found.items() if count}


def _tokens(data: DataSection, own: DomainData, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, int]:
    if tokenizer is None:
        return {}
    rows = encode_rows([*own.train, *own.validation, *own.sweep], tokenizer, data)
    lengths = sorted(len(row.input_ids) for row in rows)
    cut = sum(length >= data.max_length for length in lengths)
    return {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1], "at_limit": cut}
