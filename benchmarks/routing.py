"""A finished campaign's routing judged anew: the anchored meta-router and the paper's network, over router seeds.

    python -m benchmarks.routing --store stacks_store --campaign embedded --seeds 5

Rows, outcomes and stacks are those of the campaign's newest bundle. Each seed deals the rows to other folds, and every
row is judged by a router that never saw it. What a router chooses and the sweep did not measure is measured here.
``--soft`` adds what the same gates cost where they are served as they are, each domain weighted by its own.
Losses are nats per completion token over all rows of a kind, differences paired by row with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence, Set

import numpy as np
import pyarrow.parquet as pq

from bs_cluster.campaign.recompute import encoder
from bs_cluster.config import yaml12
from bs_cluster.config.parse import parse_config
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.estimates import estimate
from bs_cluster.inference.scoring import score_routed
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.quiet import quieten
from bs_cluster.records import RowLoss
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.fit import CrossFit, Lessons, cross_fit, fit_judges
from bs_cluster.router.folds import deal_folds
from bs_cluster.router.regret import Judged, RowsRouting, routing_groups, rows_of
from bs_cluster.store import Store
from bs_cluster.sweep.combinations import mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.plan import plan_work
from bs_cluster.sweep.search import searched

SHOWN = ("label", "anchor", "best_single", "base", "oracle")


class Finished:
    """The newest bundle of a campaign, in memory, with what its router learned from."""

    def __init__(self, store: Store, device: str):
        _, _, bundle = store.bundles()[-1]
        files = {entry.name: store.get_bytes(entry.sha256) for entry in bundle.files if entry.name != "report.md"}
        self.config: CampaignConfig = parse_config(yaml12.decode(files["campaign.yaml"], "campaign.yaml"))
        self.domains = bundle.domains
        self.stacked = StackedBase.load(self.config.base, device)
        for ref in bundle.stacks:
            self.stacked.attach(store.manifest(ref.manifest), store)
        self.stacked.fire(self.stacked.names)
        records = {record.domain: record for record in store.domains()}
        parts = [DomainRows.of(records[domain], store.get_bytes) for domain in self.domains]
        self.train = [part.train[: self.config.router.anchor_prompts] for part in parts]
        parts.append(DomainRows.from_parquet(files["unowned.parquet"], "", {}))
        self.rows: list[EncodedRow] = [row for part in parts for row in part.sweep]
        self.prompts = [prompt for part in parts for prompt in part.router_prompts]
        held = OutcomeTable.from_arrow(pq.read_table(io.BytesIO(files["outcomes.parquet"])))
        self.table = OutcomeTable([row.id for row in self.rows], [row.domain for row in self.rows], self.domains)
        self.table.update(held)

    def unmeasured(self, fitted: CrossFit) -> set[tuple[int, int]]:
        """Every row and combination in ``fitted`` that was not measured."""
        chosen = np.stack([fitted.routed_B, fitted.anchor_B], axis=1)
        return {
            (row, int(mask))
            for row, masks in enumerate(chosen)
            for mask in masks
            if int(mask) not in self.table.losses(row)
        }

    def measure(self, asked: Set[tuple[int, int]]) -> None:
        """Measures these rows under these combinations."""
        for row, mask, loss in self._scored(sorted(asked), lambda row, mask: mask_weights(mask, len(self.domains))):
            self.table.record(row, mask, loss)

    def soft_nll(self, gates_BD: np.ndarray) -> np.ndarray:
        """Summed loss (B,) of every row with each domain weighted by its gate."""
        asked = [(row, 0) for row in range(len(self.rows))]
        by_row = {row: loss.nll for row, _, loss in self._scored(asked, lambda row, mask: gates_BD[row].tolist())}
        return np.array([by_row[row] for row in range(len(self.rows))])

    def _scored(
        self, asked: Sequence[tuple[int, int]], weights: Callable[[int, int], Sequence[float]]
    ) -> Iterator[tuple[int, int, RowLoss]]:
        for batch in plan_work(asked, [len(row.input_ids) for row in self.rows], self.config.sweep.batch_tokens):
            rows = [self.rows[row] for row, _ in batch.requests]
            losses = score_routed(self.stacked, rows, [weights(*pair) for pair in batch.requests], self.domains)
            yield from ((*pair, loss) for pair, loss in zip(batch.requests, losses, strict=True))


def main() -> None:
    quieten()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing")
    parser.add_argument("--store", default="stacks_store")
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["anchored", "network"], choices=("anchored", "network"))
    parser.add_argument("--soft", action="store_true")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    finished = Finished(Store(arguments.store, arguments.campaign), arguments.device)
    training = [(d, row) for d, rows in enumerate(finished.train) for row in rows]
    encode = encoder(finished.stacked, finished.config)
    features = encode([row.input_ids[: row.prompt_length] for _, row in training], True)
    anchor = fit_anchor(np.stack(features), [d for d, _ in training], len(finished.domains))
    taught = searched(finished.table, finished.config.sweep)  # not by what other seeds chose and had measured
    for kind in arguments.kinds:
        settings = finished.config.router.model_copy(update={"kind": kind})
        states = encode(finished.prompts, kind == "anchored")
        for seed in range(arguments.seeds):
            lessons = Lessons(taught, states, anchor, settings, seed)
            fitted = cross_fit(lessons)
            finished.measure(finished.unmeasured(fitted))
            judged = Judged.of(finished.table, fitted)
            kinds, owners = routing_groups(judged)
            for name, routing in (kinds | owners if seed == 0 else kinds).items():
                print(line(f"{kind} seed {seed}", name, routing), flush=True)
            if arguments.soft:
                fold_B = deal_folds(taught.row_ids, taught.owners, taught.domains, settings.folds, seed)
                judges = fit_judges(lessons, fold_B, np.unique(fold_B).tolist())
                gates_BD = 1 / (1 + np.exp(-judges.logits(states, fold_B)))
                change_B = finished.soft_nll(gates_BD) - judged.nll["routed"]
                for name, rows in rows_of(judged.kinds).items():
                    change = estimate(change_B[rows], judged.tokens_B[rows])
                    print(f"{kind} seed {seed} | {name} | gates as they are, less routed: {change}", flush=True)


def line(router: str, rows: str, routing: RowsRouting) -> str:
    losses = " ".join(f"{policy} {loss:.3f}" for policy, loss in routing.loss.items())
    against = "; ".join(
        f"{rival} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        for rival, found in routing.routed_minus.items()
        if rival in SHOWN
    )
    return f"{router} | {rows} | {routing.rows} rows | {losses} | routed less {against} | out {routing.stayed_out:.2f}"


if __name__ == "__main__":
    main()
