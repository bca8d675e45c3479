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


def search_kind(settings: SweepSection, domain_count: int) -> Literal["exhaustive", "adaptive"]:
    """How a bundle of this many domains is searched; ``auto`` turns adaptive above ``exhaustive_up_to``."""
    if settings.search != "auto":
        return settings.search
    return "exhaustive" if domain_count <= settings.exhaustive_up_to else "adaptive"


def outcomes_per_row(domain_count: int) -> int:
    """How many outcomes an adaptive search may take of a row: half of all, at most four a domain, and never fewer
    than it begins with (none, each alone, all)."""
    return max(min(1 << domain_count >> 1, 4 * domain_count), min(domain_count + 2, 1 << domain_count))


def next_requests(table: OutcomeTable, settings: SweepSection) -> list[tuple[int, int]]:
    """(row index, mask) pairs to measure now; empty when the search is over.

    Exhaustive: all that is missing of the 2^D. Adaptive: each row's next wave (see ``_adaptive_missing``).
    """
    domain_count = len(table.domains)
    if search_kind(settings, domain_count) == "exhaustive":
        return table.missing(all_masks(domain_count))
    return [
        (row, mask)
        for row in range(len(table.row_ids))
        for mask in _adaptive_missing(table.losses(row), domain_count, settings.adaptive_width)
    ]


def _adaptive_missing(losses: Mapping[int, float], domain_count: int, width: int) -> list[int]:
    """One row's next unmeasured masks.

    It begins with the base, every single domain, and all of them, which every report compares with. Then, again and
    again, the best combination so far that was not looked around yet, of the best ``width``, has its neighbours
    measured: every domain added or taken away. Where the budget ends inside a neighbourhood, the neighbours go first
    whose domains gained most alone. It ends when the best have all been looked around: none of their neighbours is
    better. Waves are replayed from the start with ``losses`` as memo: what else happens to be measured cannot change
    the course of the search.
    """
    singles = [1 << d for d in range(domain_count)]
    budget = outcomes_per_row(domain_count)
    known = {0, full_mask(domain_count), *singles}
    around: set[int] = set()

    def promise(mask: int) -> tuple[float, int]:
        return sum(losses[single] - losses[0] for single in singles if mask & single), mask

    while not (missing := sorted(known - losses.keys())):
        leaders = sorted(known, key=lambda mask: (losses[mask], mask.bit_count(), mask))[:width]
        centre = next((mask for mask in leaders if mask not in around), None)
        if centre is None or len(known) >= budget:
            return []
        around.add(centre)
        neighbours = {centre ^ single for single in singles} - known
        known |= set(sorted(neighbours, key=promise)[: budget - len(known)])
    return missing
