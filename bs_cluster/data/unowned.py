"""Rows that no domain owns, for the sweep alone: mixed ones ask for several capabilities, foreign ones for none."""

from __future__ import annotations

from collections import Counter

from bs_cluster.config.schema import CampaignConfig, SweepRows
from bs_cluster.data.clean import normalise
from bs_cluster.data.domains import read_rows
from bs_cluster.data.rows import Row
from bs_cluster.data.split import prompt_rank
from bs_cluster.errors import DataError


def load_unowned(config: CampaignConfig) -> tuple[Row, ...]:
    """The rows of ``sweep.mixed`` and ``sweep.foreign``, owned by ``mixed:<name>`` and ``foreign:<name>``, each prompt
    once; of each kind those that rank first by a hash of their prompts. Raises DataError for a kind with too few."""
    taken: set[str] = set()
    rows: list[Row] = []
    for kind, sections in (("mixed", config.sweep.mixed), ("foreign", config.sweep.foreign)):
        for section in sections:
            rows += _kind(f"{kind}:{section.name}", section, config, taken)
    return tuple(rows)


def _kind(owner: str, section: SweepRows, config: CampaignConfig, taken: set[str]) -> list[Row]:
    found: list[Row] = []
    try:
        read = read_rows(section.source, owner, config, Counter())
    except DataError as error:
        raise DataError(f"{owner}, source {section.source.label}: {error}") from error
    for row in read:
        if normalise(row.prompt) not in taken:
            taken.add(normalise(row.prompt))
            found.append(row)
    if len(found) < section.rows:
        raise DataError(
            f"{owner} has {len(found)} rows, {section.rows} are wanted; lower its rows or add to its source"
        )
    return sorted(found, key=prompt_rank)[: section.rows]
