"""The second half of a campaign: outcomes, the meta-router, its regret, and every mode's loss on the same rows.

Shapes: B rows, D domains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.lessons import gather_lessons
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.frozen import DomainRows
from bs_cluster.inference.evaluator import Evaluator
from bs_cluster.inference.probe import probe_rows
from bs_cluster.records import ModeLosses, Probe, StackManifest, canonical_json, sha256_hex
from bs_cluster.report.record import SweepReport
from bs_cluster.router.fit import CrossFit, Served, cross_fit, fit_router
from bs_cluster.router.regret import RoutingReport, policy_nll, routing_report
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.pool import EvaluatorPool
from bs_cluster.sweep.sweep import encode_prompts, measure, run_sweep


@dataclass(frozen=True)
class Routing:
    """What the second half found. ``losses`` are those of the sweep rows, under every mode; ``gates`` is the share of
    each owner's rows for which a domain fired. ``unowned`` are the rows that no domain owns."""

    table: OutcomeTable
    fitted: CrossFit
    served: Served
    input_size: int
    unowned: DomainRows
    losses: ModeLosses
    report: RoutingReport
    gates: dict[str, dict[str, float]]
    sweep: SweepReport
    timing: dict[str, float]


def start_evaluators(campaign: Campaign) -> list[Any]:
    """Evaluator actors, loading in parallel. Ray restarts one that dies; its work is given out again."""
    sweep = campaign.config.sweep
    actor = ray.remote(Evaluator).options(
        num_cpus=sweep.cpus_per_evaluator, num_gpus=sweep.gpus_per_evaluator, max_restarts=sweep.max_retries
    )
    return [actor.remote(campaign.config.model_dump(mode="json"), campaign.domains) for _ in range(sweep.evaluators)]


def stop_evaluators(evaluators: Sequence[Any]) -> None:
    for evaluator in evaluators:
        try:
            ray.kill(evaluator)
        except RayError:  # it is gone already
            continue


def sweep_digest(
    manifests: Sequence[StackManifest], rows: Mapping[str, DomainRows], unowned: DomainRows, domains: Sequence[str]
) -> str:
    """What outcomes depend on: the stacks and the rows. Parts measured under this digest may be used again."""
    prints = [*(rows[domain].fingerprint for domain in domains), unowned.fingerprint]
    return sha256_hex(canonical_json([[m.digest() for m in manifests], list(domains), prints]))


def parent_mask(manifests: Sequence[StackManifest], domain: str, domains: Sequence[str]) -> int:
    """The domains that fired while ``domain`` trained its last stack, itself included, as a bitmask."""
    own = [m for m in manifests if m.stack.domain == domain]
    active = {domain, *(stack.domain for stack in own[-1].context)} if own else set()
    return sum(1 << d for d, name in enumerate(domains) if name in active)


def sweep_and_route(
    campaign: Campaign,
    evaluators: Sequence[Any],
    rows: Mapping[str, DomainRows],
    unowned: DomainRows,
    on_progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> Routing:
    """Measures the outcomes, judges the meta-router by cross-fitting over all rows, and trains the one to serve."""
    config, store, domains = campaign.config, campaign.store, campaign.domains
    manifests = [manifest for _, manifest in store.stacks()]
    unowned = unowned.without(frozenset().union(*(rows[domain].ids for domain in domains)))
    parts = [*(rows[domain] for domain in domains), unowned]
    sweep_rows = [row for part in parts for row in part.sweep]
    area = store.sweep_area(sweep_digest(manifests, rows, unowned, domains))
    started = time.monotonic()
    held_before = area.read()
    table = run_sweep(evaluators, sweep_rows, domains, config.sweep, area, on_progress)
    swept = time.monotonic()
    measured = len(table) - (0 if held_before is None else held_before.num_rows)

    def encode(prompts: Sequence[Sequence[int]], pooled: bool) -> list[np.ndarray]:
        return encode_prompts(evaluators, prompts, config.sweep, pooled)

    lessons = gather_lessons(config, table, rows, unowned, encode)
    say(f"{'meta-router':<14} {len(sweep_rows)} rows, each judged by a router that never saw it")
    fitted, served = cross_fit(lessons), fit_router(lessons, range(len(sweep_rows)))
    # An adaptive search may not have measured what was chosen: what judges is measured, never estimated.
    chosen = zip(fitted.routed_B.tolist(), fitted.anchor_B.tolist(), strict=True)
    asked = {(row, mask) for row, masks in enumerate(chosen) for mask in masks if mask not in table.losses(row)}
    if asked:
        measure(evaluators, sweep_rows, table, sorted(asked), config.sweep, area, on_progress)
    ended = time.monotonic()
    report = routing_report(config.router, table, fitted, served)
    return Routing(
        table=table,
        fitted=fitted,
        served=served,
        input_size=lessons.anchor.centre_F.shape[0] // 2,
        unowned=unowned,
        losses=mode_losses(table, fitted, manifests),
        report=report,
        gates=_mean_gates(table, fitted.routed_B),
        sweep=SweepReport(
            rows=len(sweep_rows),
            combinations=len(table.masks()),
            rows_per_s=measured / (swept - started) if measured else None,
            seconds=swept - started,
            reused=len(table) - measured,
        ),
        timing={"sweep": swept - started, "router": ended - swept},
    )


def mode_losses(table: OutcomeTable, fitted: CrossFit, manifests: Sequence[StackManifest]) -> ModeLosses:
    """Every mode on the rows of ``table``, all of it measured; None where a mode has no meaning for a row."""
    policies = policy_nll(table, fitted)
    policies["ungated"] = policies.pop("all_on")
    parents = {domain: parent_mask(manifests, domain, table.domains) for domain in table.domains}
    masks = [parents.get(owner) for owner in table.owners]
    policies["isolated"] = policies["label"]
    nll: dict[str, tuple[float | None, ...]] = {
        mode: tuple(float(value) if np.isfinite(value) else None for value in nll_B) for mode, nll_B in policies.items()
    }
    tokens = table.tokens_B.tolist()
    beside = [None if mask is None else table.losses(row).get(mask) for row, mask in enumerate(masks)]
    nll["parents"] = tuple(None if mean is None else mean * count for mean, count in zip(beside, tokens, strict=True))
    return ModeLosses(table.row_ids, table.owners, tuple(tokens), nll)


def _mean_gates(table: OutcomeTable, masks_B: np.ndarray) -> dict[str, dict[str, float]]:
    """Share of each owner's rows for which each domain fired."""
    fires_BD = (masks_B[:, None] >> np.arange(len(table.domains))) & 1
    owners = np.array(table.owners)
    return {
        owner: dict(zip(table.domains, fires_BD[owners == owner].mean(axis=0).tolist(), strict=True))
        for owner in dict.fromkeys(table.owners)
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
