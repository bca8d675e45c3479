"""Which combinations to measure next, as a pure function of what is measured already.

A sweep asks ``next_requests`` until it answers with nothing. All state is in the table, so a sweep that was killed
goes on from its table and ends with the same outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from bs_cluster.config.schema import SweepSection
from bs_cluster.sweep.combinations import all_masks, full_mask
from bs_cluster.sweep.outcomes import OutcomeTable


def search_kind(settings: SweepSection, domain_count: int) -> Literal["exhaustive", "beam"]:
    """How a bundle of this many domains is searched; ``auto`` turns to the beam above ``exhaustive_up_to``."""
    if settings.search != "auto":
        return settings.search
    return "exhaustive" if domain_count <= settings.exhaustive_up_to else "beam"


def next_requests(table: OutcomeTable, settings: SweepSection) -> list[tuple[int, int]]:
    """(row index, mask) pairs to measure now; empty when the search is over.

    Exhaustive: all that is missing of the 2^D. Beam: each row's next wave (see ``_beam_missing``).
    """
    domain_count = len(table.domains)
    if search_kind(settings, domain_count) == "exhaustive":
        return table.missing(all_masks(domain_count))
    return [
        (row, mask)
        for row in range(len(table.row_ids))
        for mask in _beam_missing(table.losses(row), domain_count, settings.beam_width)
    ]


def _beam_missing(losses: Mapping[int, float], domain_count: int, width: int) -> list[int]:
    """One row's next unmeasured masks.

    The first wave is the base, every single domain, and all of them (which reports compare with). Each further
    wave extends, by one domain, the best ``width`` subsets so far and the greedy path of the paper, until the best
    have all been extended and so nothing new can overtake them. The waves are replayed from the start with
    ``losses`` as memo: what else happens to be measured cannot change the course of the search.
    """
    singles = {1 << d for d in range(domain_count)}
    wave = {0, full_mask(domain_count)} | singles
    known: set[int] = set()
    while wave:
        if missing := sorted(wave - losses.keys()):
            return missing
        known |= wave
        leaders = sorted(known - {0, full_mask(domain_count)}, key=lambda mask: (losses[mask], mask))[:width]
        parents = {*leaders, *_greedy_path(losses, known, singles)}
        wave = {parent | single for parent in parents for single in singles} - known
    return []


def _greedy_path(losses: Mapping[int, float], known: set[int], singles: set[int]) -> list[int]:
    """The best single domain, then its best extension while that improves, as far as ``known`` goes.

    Without it a crowded beam can drop the one path that plain greedy search would follow to a better subset.
    """

    def best(masks: set[int]) -> int:
        return min(masks, key=lambda mask: (losses[mask], mask))

    path = [best(singles)]
    while True:
        extensions = {path[-1] | single for single in singles} - {path[-1]}
        if not extensions or not extensions <= known or losses[best(extensions)] >= losses[path[-1]]:
            return path
        path.append(best(extensions))
