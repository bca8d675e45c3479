"""Which side of a null space keeps domains apart: finished campaigns that differ in it, on the same sweep rows.

    for space in output input; do make run OVERRIDES="campaign=$space null_space.space=$space"; done
    make run OVERRIDES="campaign=off null_space.enabled=false"
    python -m benchmarks.sides --store stacks_store --campaigns off output input

A row a campaign: loss of the domains' own rows under their own stacks, under theirs and one other domain's (mean over
the others), and under all, in nats per completion token with 95 % bootstrap intervals over rows; the others are paired
with the first campaign, row by row. Combinations that a sweep left out are measured here. Then, from closing records:
what claims hold, what crosses, who fires where (mean over sites, from the lowest to the highest, and the worst site).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from benchmarks.routing import Finished
from bs_cluster.estimates import estimate
from bs_cluster.quiet import quieten
from bs_cluster.records import DomainRecord, Spread
from bs_cluster.store import Store
from bs_cluster.sweep.outcomes import OutcomeTable

FIGURES: dict[str, Callable[[DomainRecord], Iterable[Spread]]] = {
    "energy held, outputs": lambda record: [s for side, s in record.energy_held.items() if side == "output"],
    "energy held, inputs": lambda record: [s for side, s in record.energy_held.items() if side == "input"],
    "overlap of deltas": lambda record: record.overlap.values(),
    "later stacks on earlier tokens": lambda record: record.abroad.values(),
    "earlier stacks on later tokens": lambda record: record.foreign.values(),
}


def compared_masks(domain: int, domains: int) -> dict[str, list[int]]:
    """By column: the combinations whose mean loss stands there, for rows of this domain."""
    own = 1 << domain
    beside = [own | 1 << other for other in range(domains) if other != domain]
    return {"own": [own], "own and one other": beside, "all": [(1 << domains) - 1]}


def nats(table: OutcomeTable) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Summed loss of every row that a domain owns by column, its tokens, its id."""
    rows = [row for row, owner in enumerate(table.owners) if owner in table.domains]
    tokens_B = np.array([table.tokens_B[row] for row in rows], dtype=float)
    masks = [compared_masks(table.domains.index(table.owners[row]), len(table.domains)) for row in rows]
    by_column = {
        column: np.array([
            np.mean([table.losses(row)[mask] for mask in by_row[column]])
            for row, by_row in zip(rows, masks, strict=True)
        ]) * tokens_B
        for column in masks[0]
    }  # fmt: skip
    return by_column, tokens_B, [table.row_ids[row] for row in rows]


def wanted(table: OutcomeTable) -> list[tuple[int, int]]:
    """Rows, and combinations they are compared under and were not measured under."""
    return [
        (row, mask)
        for row, owner in enumerate(table.owners)
        if owner in table.domains
        for masks in compared_masks(table.domains.index(owner), len(table.domains)).values()
        for mask in masks
        if mask not in table.losses(row)
    ]


def figures(records: Iterable[DomainRecord]) -> Mapping[str, str]:
    told = {}
    for name, spreads_of in FIGURES.items():
        spreads = [spread for record in records for spread in spreads_of(record)]
        if spreads:
            means = [spread.mean for spread in spreads]
            worst = (min if name.startswith("energy") else max)(spread.worst for spread in spreads)
            told[name] = f"{min(means):.3f} to {max(means):.3f}, worst site {worst:.3f}"
    return told


def main() -> None:
    quieten()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sides")
    parser.add_argument("--store", default="stacks_store")
    parser.add_argument("--campaigns", nargs="+", required=True, help="the first is what the others are paired with")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    reference = None
    for campaign in arguments.campaigns:
        store = Store(arguments.store, campaign)
        finished = Finished(store, arguments.device)
        finished.complete(wanted(finished.table))
        by_column, tokens_B, ids = nats(finished.table)
        reference = reference or (by_column, ids)
        if reference[1] != ids:
            raise SystemExit(f"{campaign} was swept on other rows than {arguments.campaigns[0]}; they cannot be paired")
        for column, nats_B in by_column.items():
            found = estimate(nats_B, tokens_B)
            line = f"{campaign} | {column} | {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] on {found.rows} rows"
            if campaign != arguments.campaigns[0]:
                line += f" | less {arguments.campaigns[0]} {estimate(nats_B - reference[0][column], tokens_B)}"
            print(line, flush=True)
        for name, told in figures(store.domains()).items():
            print(f"{campaign} | {name} | {told}", flush=True)


if __name__ == "__main__":
    main()
