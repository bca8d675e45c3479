"""The second half of a campaign: outcomes, the meta-router, its regret, and every mode's loss on the same rows.

Shapes: B rows, D domains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.carried import carry_over
from bs_cluster.campaign.lessons import teach_anchor
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows, probe_rows
from bs_cluster.records import ModeLosses, Probe, StackManifest, canonical_json, sha256_hex
from bs_cluster.report.record import SweepReport
from bs_cluster.router.fit import Lessons, Served, teach
from bs_cluster.router.folds import deal_folds, sample_rows
from bs_cluster.router.judging import judge_shard
from bs_cluster.router.regret import Judged, RoutingReport, routing_report, rows_of
from bs_cluster.store import SweepArea
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.pool import EvaluatorPool
from bs_cluster.sweep.shards import Shard, read_shards
from bs_cluster.sweep.sweep import Progress, encode_prompts, run_sweep, score_gates


@dataclass(frozen=True)
class Outcomes:
    """All outcomes of a sweep's rows, read anew for each pass: shards, or their tables in long format."""

    rows: Sequence[EncodedRow]
    campaign: Campaign
    area: SweepArea

    def shards(self) -> Iterator[Shard]:
        return read_shards(self.rows, self.campaign.domains, self.campaign.config.sweep, self.area)

    def __iter__(self) -> Iterator[pa.Table]:
        return (shard.table.to_arrow() for shard in self.shards())

    def of(self, places: Sequence[int]) -> OutcomeTable:
        """The outcomes of the rows at these places alone, in this order."""
        own = [self.rows[place] for place in places]
        table = OutcomeTable([row.id for row in own], [row.domain for row in own], self.campaign.domains)
        for shard in self.shards():
            table.update(shard.table)
        return table


@dataclass(frozen=True)
class Routing:
    """What the second half found. ``losses`` are those of the sweep rows, under every mode; ``gates`` is the mean gate
    weight of each domain over an owner's rows. ``unowned`` are the rows that no domain owns."""

    outcomes: Outcomes
    judged: Judged
    served: Served
    input_size: int
    unowned: DomainRows
    losses: ModeLosses
    report: RoutingReport
    gates: dict[str, dict[str, float]]
    sweep: SweepReport
    timing: dict[str, float]


def sweep_digest(
    manifests: Sequence[StackManifest], rows: Mapping[str, DomainRows], unowned: DomainRows, domains: Sequence[str]
) -> str:
    """What outcomes depend on: the stacks and the rows. Parts measured under this digest may be used again."""
    prints = [*(rows[domain].fingerprint for domain in domains), unowned.fingerprint]
    return sha256_hex(canonical_json([[m.digest() for m in manifests], list(domains), prints]))


def parent_mask(manifests: Sequence[StackManifest], domain: str, domains: Sequence[str]) -> int:
    """The domains that fired while ``domain`` trained its last stack, itself included, as a bitmask; -1 where one of
    their stacks was retired since, so that no combination is what it was."""
    own = [m for m in manifests if m.stack.domain == domain]
    if own and not {m.stack for m in manifests}.issuperset(own[-1].context):
        return -1
    active = {domain, *(stack.domain for stack in own[-1].context)} if own else set()
    return sum(1 << d for d, name in enumerate(domains) if name in active)


def sweep_and_route(
    campaign: Campaign,
    evaluators: Sequence[Any],
    rows: Mapping[str, DomainRows],
    unowned: DomainRows,
    progress: Callable[[str, str], Progress],
    say: Callable[[str], None],
) -> Routing:
    """Measures the outcomes, judges the meta-router by cross-fitting over all rows, and trains the one to serve."""
    config, store, domains = campaign.config, campaign.store, campaign.domains
    manifests = [manifest for _, manifest in store.stacks()]
    unowned = unowned.without(frozenset().union(*(rows[domain].ids for domain in domains)))
    parts = [*(rows[domain] for domain in domains), unowned]
    sweep_rows = [row for part in parts for row in part.sweep]
    prompts = [prompt for part in parts for prompt in part.router_prompts]
    ids, owners = [row.id for row in sweep_rows], [row.domain for row in sweep_rows]
    fold_B = deal_folds(ids, owners, domains, config.router.folds, config.seed)
    taught = sample_rows(ids, owners, config.router.learn_rows, config.seed)
    table = OutcomeTable([ids[row] for row in taught], [owners[row] for row in taught], domains)
    area = store.sweep_area(sweep_digest(manifests, rows, unowned, domains))
    started = time.monotonic()
    carry_over(campaign, sweep_rows, area)
    reused, swept = 0, 0
    for shard in run_sweep(evaluators, sweep_rows, domains, config.sweep, area, progress("sweep", "outcomes")):
        table.update(shard.table)
        reused, swept = reused + shard.held, swept + len(shard.table)
    seconds = time.monotonic() - started

    def encode(some: Sequence[Sequence[int]], pooled: bool = config.router.kind == "anchored") -> list[np.ndarray]:
        return encode_prompts(evaluators, some, config.sweep, pooled)

    say(f"{'meta-router':<14} {len(sweep_rows)} rows, each judged by a router that never saw it")
    tried = progress("meta-router", "losses under gates that may be served")
    states = dict(zip(taught.tolist(), encode([prompts[row] for row in taught]), strict=True))
    anchor = teach_anchor(config, domains, rows, encode)
    lessons = Lessons(table, list(states.values()), anchor, config.router, config.seed)

    def try_gates(row_N: np.ndarray, gates_ND: np.ndarray) -> np.ndarray:
        return score_gates(evaluators, sweep_rows, taught[row_N], gates_ND, config.sweep, tried)

    judges, served = teach(lessons, fold_B[taught], np.unique(fold_B).tolist(), try_gates)
    # What judges is measured, never estimated: every row under its own gates.
    outcomes = Outcomes(sweep_rows, campaign, area)
    found, parents, masks = [], [], set()
    judged_rows = progress("meta-router", "rows judged under their gates")
    for shard in outcomes.shards():

        def score(row_N: np.ndarray, gates_ND: np.ndarray, shard: Shard = shard) -> np.ndarray:
            def told(done: int, of: int) -> None:
                judged_rows(shard.start + len(shard.rows) * done // of, len(sweep_rows))

            return score_gates(evaluators, shard.rows, row_N, gates_ND, config.sweep, told)

        found.append(judge_shard(judges, shard, prompts, fold_B, states, encode, score))
        parents.append(_parents_nll(shard.table, manifests))
        masks.update(shard.table.masks())
    judged = Judged.together(found)
    ended = time.monotonic()
    return Routing(
        outcomes=outcomes,
        judged=judged,
        served=served,
        input_size=anchor.centre_F.shape[0] // 2,
        unowned=unowned,
        losses=mode_losses(judged, np.concatenate(parents)),
        report=routing_report(config.router, judged, served),
        gates=_mean_gates(judged),
        sweep=SweepReport(
            rows=len(sweep_rows),
            combinations=len(masks),
            rows_per_s=(swept - reused) / seconds if swept > reused else None,
            seconds=seconds,
            reused=reused,
        ),
        timing={"sweep": seconds, "router": ended - started - seconds},
    )


def _parents_nll(table: OutcomeTable, manifests: Sequence[StackManifest]) -> np.ndarray:
    """Summed loss (B,) of each row under what fired while its domain trained, NaN where it has none."""
    parents = {domain: parent_mask(manifests, domain, table.domains) for domain in table.domains}
    mask_B = np.array([parents.get(owner, -1) for owner in table.owners], dtype=np.int64)
    return np.where(mask_B >= 0, table.nll(np.arange(len(mask_B)), mask_B), np.nan)


def mode_losses(judged: Judged, parents_B: np.ndarray) -> ModeLosses:
    """Every mode on the rows of ``judged``, all of it measured; None where a mode has no meaning for a row."""
    policies = dict(judged.nll)
    policies["ungated"] = policies.pop("all_on")
    policies["isolated"] = policies["label"]
    policies["parents"] = parents_B
    nll = {
        mode: tuple(value if math.isfinite(value) else None for value in nll_B.tolist())
        for mode, nll_B in policies.items()
    }
    gates = {domain: tuple(judged.fitted.routed_BD[:, d].tolist()) for d, domain in enumerate(judged.domains)}
    return ModeLosses(judged.row_ids, judged.owners, tuple(judged.tokens_B.tolist()), nll, gates)


def _mean_gates(judged: Judged) -> dict[str, dict[str, float]]:
    """Each domain's mean gate weight over each owner's rows."""
    return {
        owner: dict(zip(judged.domains, judged.fitted.routed_BD[rows].mean(axis=0).tolist(), strict=True))
        for owner, rows in rows_of(judged.owners).items()
    }


def isolated_rows(
    campaign: Campaign, evaluators: Sequence[Any], rows: Mapping[str, DomainRows]
) -> dict[str, tuple[float, ...]]:
    """Every domain's loss per validation row with only its own stacks, batched exactly as at its closing."""
    config, domains = campaign.config, campaign.domains
    batches: list[list[tuple[int, int]]] = []
    for d, domain in enumerate(domains):
        lengths = [len(row.input_ids) for row in rows[domain].validation]
        plan = plan_batches(lengths, config.training.eval_batch_tokens)
        batches += [[(d, index) for index in batch] for batch in plan]

    def score(evaluator: Any, items: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        own = [float(d == items[0][0]) for d in range(len(domains))]
        return evaluator.score.remote([rows[domains[d]].validation[index] for d, index in items], [own] * len(items))

    found: dict[str, dict[int, float]] = {domain: {} for domain in domains}
    for items, losses in EvaluatorPool(evaluators, config.sweep.max_retries).map(score, batches):
        for (d, index), loss in zip(items, losses, strict=True):
            found[domains[d]][index] = loss.mean
    return {domain: tuple(by_row[i] for i in range(len(by_row))) for domain, by_row in found.items()}


def probe_domains(campaign: Campaign, evaluators: Sequence[Any], rows: Mapping[str, DomainRows]) -> dict[str, Probe]:
    """Every domain's probe now, with only its own stacks, to be held against that of its closing."""

    def ask(evaluator: Any, domains: Sequence[str]) -> ray.ObjectRef:
        return evaluator.probe.remote(domains, [probe_rows(rows[domain].validation) for domain in domains])

    found: dict[str, Probe] = {}
    batches = [[domain] for domain in campaign.domains]
    for domains, probes in EvaluatorPool(evaluators, campaign.config.sweep.max_retries).map(ask, batches):
        found |= zip(domains, probes, strict=True)
    return found
