"""A campaign's sources to its domains' splits: one call, every step counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bs_cluster.config.identity import curriculum
from bs_cluster.config.schema import CampaignConfig, DataSection, DomainSection
from bs_cluster.config.sources import SourceSection
from bs_cluster.data.clean import clean_text, holds_chat_tokens, normalise
from bs_cluster.data.decontaminate import GENERALISTS, detect_domain, domain_words
from bs_cluster.data.encode import encode_prompt
from bs_cluster.data.formats import convert
from bs_cluster.data.rows import DomainData, Row, make_row
from bs_cluster.data.sources import read_source
from bs_cluster.data.split import fingerprint, split_rows
from bs_cluster.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Pool:
    """A domain's rows on their way to being split."""

    section: DomainSection
    rows: list[Row] = field(default_factory=list)
    moved_in: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def load_domains(config: CampaignConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, DomainData]:
    """Every domain's splits, in curriculum order.

    The rows depend on the config alone. A ``tokenizer`` only adds a check, before anything is read, that
    ``data.template`` works with it. Raises DataError for a source that cannot be read, a row that does not fit its
    format, or a domain with too few rows.
    """
    if tokenizer is not None:
        encode_prompt("", tokenizer, config.data)
    pools = [_read(config.domain(name), config) for name in curriculum(config)]
    drop_duplicates(pools)
    if config.data.decontaminate:
        move_contaminated(pools)
    return {pool.section.name: _finish(pool, config.data) for pool in pools}


def drop_duplicates(pools: Sequence[Pool]) -> None:
    """Keep each prompt once in the whole campaign: with the first domain in curriculum order, its first reading.

    This is what keeps splits apart across domains: a prompt that exists once cannot train one and test another.
    """
    taken: set[str] = set()
    for pool in pools:
        kept = []
        for row in pool.rows:
            key = normalise(row.prompt)
            if key not in taken:
                taken.add(key)
                kept.append(row)
        pool.counts["duplicates"] += len(pool.rows) - len(kept)
        pool.rows = kept


def move_contaminated(pools: Sequence[Pool]) -> None:
    """Hand each generalist row that reads as another configured domain's to that domain, to train on only.

    The paper moves rather than drops, and so do we; but never into held-out rows, which should be what the
    domain's own sources are like, not what a keyword took them for.
    """
    specialists = domain_words([pool.section for pool in pools])
    by_name = {pool.section.name: pool for pool in pools}
    for pool in pools:
        if pool.section.name not in GENERALISTS:
            continue
        kept = []
        for row in pool.rows:
            target = detect_domain(f"{row.prompt}\n{row.completion}", specialists)
            if target is None:
                kept.append(row)
                continue
            by_name[target].moved_in.append(make_row(row.prompt, row.completion, target))
            by_name[target].counts["contaminated_in"] += 1
        pool.counts["contaminated_out"] += len(pool.rows) - len(kept)
        pool.rows = kept


def _read(domain: DomainSection, config: CampaignConfig) -> Pool:
    pool = Pool(domain)
    for source in domain.sources:
        try:
            _read_into(pool, source, config)
        except DataError as error:
            raise DataError(f"domain {domain.name!r}, source {source.label}: {error}") from error
    return pool


def _read_into(pool: Pool, source: SourceSection, config: CampaignConfig) -> None:
    strip = config.data.strip_chat_tokens
    for raw in read_source(source, seed=config.seed):
        pair = convert(raw, source.row_format)
        pool.counts["read"] += 1
        pool.counts["stripped"] += strip and any(map(holds_chat_tokens, pair))
        prompt, completion = (clean_text(text, strip=strip) for text in pair)
        if prompt and completion:
            pool.rows.append(make_row(prompt, completion, pool.section.name))
        else:
            pool.counts["empty"] += 1


def _finish(pool: Pool, data: DataSection) -> DomainData:
    name = pool.section.name
    train, validation, sweep = split_rows(name, pool.rows, pool.moved_in, data)
    steps = ("read", "empty", "stripped", "duplicates", "contaminated_out", "contaminated_in")
    counts = {step: pool.counts[step] for step in steps}
    counts |= {"train": len(train), "validation": len(validation), "sweep": len(sweep)}
    digest = fingerprint(train=train, validation=validation, sweep=sweep)
    return DomainData(name, train, validation, sweep, digest, counts)
