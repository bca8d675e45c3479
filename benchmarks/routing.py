"""A finished campaign's routing judged anew: the anchored meta-router and the paper's network, over router seeds.

    python -m benchmarks.routing --store stacks_store --campaign embedded --seeds 5

Rows, outcomes and stacks are those of the campaign's newest bundle. Each seed deals the rows to other folds, and every
row is judged by a router that never saw it, under the gates that it would serve; their losses are measured here.
``--whole`` adds what it gains that gates lie between: against each domain on or off, whichever its gate is nearer to.
``--unmet FILE.jsonl ...`` adds rows of prompt and completion from elsewhere, each file a kind of its own, under the
gates of the router that is served, which met none of them; ``--pass-over N`` leaves out the first N of each file, by a
hash of their prompts: those that a choice was made on. ``--parts 0.25 1`` adds what would be lost were all rows,
however familiar, served such parts of their gates.
Losses are nats per completion token over all rows of a kind, differences paired by row with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from bs_cluster.campaign.in_process import Scorer, encoder
from bs_cluster.config import yaml12
from bs_cluster.config.parse import parse_config
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.config.sources import JsonlSource
from bs_cluster.data.domains import read_rows
from bs_cluster.data.encode import EncodedRow, encode_router_prompt, encode_rows
from bs_cluster.data.frozen import DomainRows
from bs_cluster.data.split import prompt_rank
from bs_cluster.estimates import estimate
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.quiet import quieten
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.fit import CrossFit, Lessons, Served, Taught, teach
from bs_cluster.router.folds import deal_folds
from bs_cluster.router.gated import gated_nll
from bs_cluster.router.learned import gate_inputs
from bs_cluster.router.multilinear import served_gates
from bs_cluster.router.regret import Judged, RowsRouting, routing_groups, rows_of
from bs_cluster.router.routers import AnchoredRouter
from bs_cluster.store import Store
from bs_cluster.sweep.combinations import mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.owners import kind_of

SHOWN = ("label", "anchor", "best_single", "base", "oracle")


class Remembered:
    """Summed losses of a scorer's rows, none measured twice."""

    def __init__(self, scorer: Scorer):
        self.scorer, self._ids = scorer, list(scorer.rows)
        self._known: dict[tuple[str, tuple[float, ...]], float] = {}

    def __call__(self, row_N: np.ndarray, gates_ND: np.ndarray) -> np.ndarray:
        """(N,) of these rows, each under its own gate weights (N, D)."""
        asked = [(self._ids[row], tuple(gates)) for row, gates in zip(row_N, gates_ND.tolist(), strict=True)]
        new = [one for one in dict.fromkeys(asked) if one not in self._known]
        self._known |= zip(new, (loss.nll for loss in self.scorer(new)), strict=True)
        return np.array([self._known[one] for one in asked])


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
        self.texts = [(question.prompt, question.reference) for part in parts for question in part.questions]
        held = OutcomeTable.from_arrow(pq.read_table(io.BytesIO(files["outcomes.parquet"])))
        self.table = OutcomeTable([row.id for row in self.rows], [row.domain for row in self.rows], self.domains)
        self.table.update(held)
        self.nll = Remembered(Scorer(self.stacked, self.rows, self.domains, self.config.sweep.batch_tokens))

    def complete(self, asked: Sequence[tuple[int, int]]) -> None:
        """Measures these rows under these combinations, into the table."""
        losses = self.nll.scorer([(self.rows[row].id, mask_weights(mask, len(self.domains))) for row, mask in asked])
        for (row, mask), loss in zip(asked, losses, strict=True):
            self.table.record(row, mask, loss)

    def unmet(self, path: str, passed_over: int, count: int) -> Unmet:
        """So many rows of a file of ``prompt`` and ``completion``, those that rank first by a hash of their prompts
        once some are passed over."""
        name = Path(path).stem
        source = JsonlSource(kind="jsonl", path=path)
        read = {row.id: row for row in read_rows(source, f"unmet:{name}", self.config, Counter())}
        rows = sorted(read.values(), key=prompt_rank)[passed_over : passed_over + count]
        tokenizer, data, longest = self.stacked.base.tokenizer, self.config.data, self.config.router.max_prompt_length
        prompts = [encode_router_prompt(row.asked, tokenizer, data, longest) for row in rows]
        encoded = encode_rows(rows, tokenizer, data)
        scorer = Scorer(self.stacked, encoded, self.domains, self.config.sweep.batch_tokens)
        tokens_B = np.array([row.completion_length for row in encoded])
        return Unmet(name, prompts, tokens_B, Remembered(scorer))

    def judged(self, fitted: CrossFit) -> Judged:
        """Every row under what was decided for it."""
        count = len(self.rows)
        gates_ND = np.concatenate([fitted.routed_BD, fitted.anchor_BD])
        nll_N = gated_nll(self.table, np.tile(np.arange(count), 2), gates_ND, self.nll)
        return Judged.of(self.table, fitted, nll_N[:count], nll_N[count:])


class Unmet(NamedTuple):
    """Rows that no router learned from: their prompts as a router sees them, and how they are scored."""

    name: str
    prompts: list[list[int]]
    tokens_B: np.ndarray
    nll: Remembered

    def less_base(self, gates_BD: np.ndarray) -> np.ndarray:
        """What the rows lose (B,) under these gates, less what the base loses on them."""
        every = np.arange(len(gates_BD))
        return self.nll(every, gates_BD) - self.nll(every, np.zeros_like(gates_BD))


def main() -> None:
    quieten()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing")
    parser.add_argument("--store", default="stacks_store")
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["anchored", "network"], choices=("anchored", "network"))
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--unmet", nargs="+", default=[], metavar="FILE.jsonl")
    parser.add_argument("--unmet-rows", type=int, default=40, metavar="N", help="of each file")
    parser.add_argument("--pass-over", type=int, default=0, metavar="N")
    parser.add_argument("--parts", nargs="+", type=float, default=[], metavar="PART")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    finished = Finished(Store(arguments.store, arguments.campaign), arguments.device)
    training = [(d, row) for d, rows in enumerate(finished.train) for row in rows]
    encode = encoder(finished.stacked, finished.config)
    features = encode([row.input_ids[: row.prompt_length] for _, row in training], True)
    anchor = fit_anchor(np.stack(features), [d for d, _ in training], len(finished.domains))
    unmet = [finished.unmet(path, arguments.pass_over, arguments.unmet_rows) for path in arguments.unmet]
    table = finished.table
    for kind in arguments.kinds:
        settings = finished.config.router.model_copy(update={"kind": kind})
        states = encode(finished.prompts, kind == "anchored")
        unmet_states = [encode(one.prompts, kind == "anchored") for one in unmet]
        for seed in range(arguments.seeds):
            fold_B = deal_folds(table.row_ids, table.owners, table.domains, settings.folds, seed)
            lessons = Lessons(table, states, anchor, settings, seed)
            taught = teach(lessons, fold_B, np.unique(fold_B).tolist(), finished.nll)
            fitted = taught.judges.choose(states, table.owners, table.domains, fold_B)
            judged = finished.judged(fitted)
            kinds, owners = routing_groups(judged)
            for name, routing in (kinds | owners if seed == 0 else kinds).items():
                print(line(f"{kind} seed {seed}", name, routing), flush=True)
            less = []
            for one, its_states in zip(unmet, unmet_states, strict=True):
                gates_BD = taught.served.gates(its_states)
                less.append(one.less_base(gates_BD))
                gates = " ".join(f"{gate:.2f}" for gate in gates_BD.mean(axis=0))
                print(unmet_line(f"{kind} seed {seed}", one.name, less[-1], one.tokens_B), f"| gates {gates}")
            if len(unmet) > 1:
                tokens_B = np.concatenate([one.tokens_B for one in unmet])
                print(unmet_line(f"{kind} seed {seed}", "all of them", np.concatenate(less), tokens_B), flush=True)
            if arguments.parts and kind == "anchored" and seed == 0:
                asked = list(zip(unmet, unmet_states, strict=True))
                print_parts(finished, taught, states, fold_B, asked, arguments.parts)
            if arguments.whole:
                whole_BD = (fitted.routed_BD > 0.5).astype(np.float64)
                nll_B = gated_nll(table, np.arange(len(whole_BD)), whole_BD, finished.nll)
                for name, rows in rows_of(judged.kinds).items():
                    change = estimate((judged.nll["routed"] - nll_B)[rows], judged.tokens_B[rows])
                    print(f"{kind} seed {seed} | {name} | routed less whole domains: {change}", flush=True)


def print_parts(
    finished: Finished,
    taught: Taught,
    states: Sequence[np.ndarray],
    fold_B: np.ndarray,
    unmet: Sequence[tuple[Unmet, Sequence[np.ndarray]]],
    parts: Sequence[float],
) -> None:
    """What all rows lose less the base, each served such a part of the gates that it would get at home."""
    table, judges = finished.table, taught.judges

    def gates(served: Served, states: Sequence[np.ndarray], part: float) -> np.ndarray:
        assert isinstance(served.router, AnchoredRouter)
        prompts = gate_inputs(judges.anchor, np.stack(states))
        return served_gates(served.router.logits(prompts), served.masks, part)

    every, tokens_B = np.arange(len(states)), np.array([row.completion_length for row in finished.rows])
    base_B = finished.nll(every, np.zeros((len(every), len(table.domains))))
    kinds = rows_of([kind_of(owner, table.domains) for owner in table.owners])
    for part in parts:
        gates_BD = np.zeros((len(every), len(table.domains)))
        for fold in np.unique(fold_B).tolist():
            held = np.flatnonzero(fold_B == fold)
            gates_BD[held] = gates(judges.served[fold], [states[row] for row in held.tolist()], part)
        less_B = finished.nll(every, gates_BD) - base_B
        for name, rows in kinds.items():
            print(unmet_line(f"part {part:g}", name, less_B[rows], tokens_B[rows]), flush=True)
        less = [one.less_base(gates(taught.served, its_states, part)) for one, its_states in unmet]
        for (one, _), of in zip(unmet, less, strict=True):
            print(unmet_line(f"part {part:g}", one.name, of, one.tokens_B), flush=True)
        if len(less) > 1:
            tokens = np.concatenate([one.tokens_B for one, _ in unmet])
            print(unmet_line(f"part {part:g}", "all of them", np.concatenate(less), tokens), flush=True)


def unmet_line(router: str, rows: str, less_B: np.ndarray, tokens_B: np.ndarray) -> str:
    return f"{router} | {rows} | {len(less_B)} rows | routed less base {estimate(less_B, tokens_B)}"


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
