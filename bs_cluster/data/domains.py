"""A campaign's sources to its domains' splits: one call, every step counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bs_cluster.config.identity import curriculum
from bs_cluster.config.schema import VALIDATION_ROWS_NEEDED, CampaignConfig, DomainSection
from bs_cluster.config.sources import SourceSection
from bs_cluster.data.clean import clean_text, holds_chat_tokens, normalise
from bs_cluster.data.decontaminate import GENERALISTS, detect_domain, domain_words
from bs_cluster.data.encode import encode_prompt
from bs_cluster.data.formats import UnusableRow, convert
from bs_cluster.data.near_duplicates import Splits, drop_near_duplicates
from bs_cluster.data.readers import read_source
from bs_cluster.data.rows import DomainData, Prompt, Row, Turn, make_row, plain_text
from bs_cluster.data.split import fingerprint, split_rows
from bs_cluster.data.verify import row_check
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
    splits = [Splits(*split_rows(pool.section.name, pool.rows, pool.moved_in, config.data)) for pool in pools]
    apart = splits
    if config.data.near_duplicates is not None:
        apart = drop_near_duplicates(splits, config.data.near_duplicates)
    return {
        pool.section.name: _finish(pool, before, after)
        for pool, before, after in zip(pools, splits, apart, strict=True)
    }


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
            by_name[target].moved_in.append(make_row(row.asked, row.completion, target))
            by_name[target].counts["contaminated_in"] += 1
        pool.counts["contaminated_out"] += len(pool.rows) - len(kept)
        pool.rows = kept


def _read(domain: DomainSection, config: CampaignConfig) -> Pool:
    pool = Pool(domain)
    for source in domain.sources:
        try:
            pool.rows += read_rows(source, domain.name, config, pool.counts)
        except DataError as error:
            raise DataError(f"domain {domain.name!r}, source {source.label}: {error}") from error
    return pool


def read_rows(source: SourceSection, owner: str, config: CampaignConfig, counts: Counter[str]) -> list[Row]:
    """The source's rows, converted and clean, as ``owner``'s; ``counts`` gets what became of those it read.

    Raises DataError when the source cannot be read, or none of its rows can be used.
    """
    strip, read, unusable, rows = config.data.strip_chat_tokens, 0, Counter[str](), []
    for raw in read_source(source, seed=config.seed):
        read += 1
        try:
            prompt, completion = convert(raw, source.row_format)
        except UnusableRow as error:
            unusable[str(error)] += 1
            continue
        counts["stripped"] += strip and any(map(holds_chat_tokens, (plain_text(prompt), completion)))
        prompt, completion = cleaned(prompt, strip), clean_text(completion, strip=strip)
        if prompt and completion:
            rows.append(make_row(prompt, completion, owner, row_check(raw, source)))
        else:
            counts["empty"] += 1
    counts["read"] += read
    counts["unusable"] += unusable.total()
    counts.update({f"unusable: {reason}": count for reason, count in unusable.items()})
    if read and unusable.total() == read:
        reasons = "; ".join(f"{reason} ({count} rows)" for reason, count in unusable.most_common(3))
        raise DataError(f"none of its {read} rows can be used: {reasons}; choose the format that fits")
    return rows


def cleaned(prompt: Prompt, strip: bool) -> Prompt:
    """The prompt clean, turn by turn; empty if one of them is, but for a system that says nothing."""
    if isinstance(prompt, str):
        return clean_text(prompt, strip=strip)
    turns = [Turn(turn.role, clean_text(turn.content, strip=strip)) for turn in prompt]
    said = tuple(turn for turn in turns if turn.content or turn.role != "system")
    return said if all(turn.content for turn in said) else ""


def _finish(pool: Pool, before: Splits, after: Splits) -> DomainData:
    name = pool.section.name
    if not (after.train and after.validation and after.sweep):
        raise DataError(
            f"domain {name!r}: every row of a split is nearly the same as a held-out one; "
            "give it more varied rows, or raise data.near_duplicates"
        )
    if len(after.validation) < VALIDATION_ROWS_NEEDED:
        raise DataError(
            f"domain {name!r}: {len(after.validation)} of {len(before.validation)} validation rows are not nearly the "
            f"same as a row held out elsewhere; {VALIDATION_ROWS_NEEDED} are needed, two to choose a stack's snapshot "
            "and two to decide about its commit; give it more varied rows, or raise data.validation_rows or "
            "data.near_duplicates"
        )
    steps = ("read", "unusable", "empty", "stripped", "duplicates", "contaminated_out", "contaminated_in")
    counts = {step: pool.counts[step] for step in steps}
    counts |= {step: count for step, count in pool.counts.items() if step.startswith("unusable: ")}
    counts["near_duplicates"] = before.size - after.size
    counts |= {"train": len(after.train), "validation": len(after.validation), "sweep": len(after.sweep)}
    digest = fingerprint(train=after.train, validation=after.validation, sweep=after.sweep)
    return DomainData(name, after.train, after.validation, after.sweep, digest, counts)
