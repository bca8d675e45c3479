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
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.frozen import DomainRows
from bs_cluster.inference.evaluator import Evaluator
from bs_cluster.records import ModeLosses, RowLoss, StackManifest, canonical_json, sha256_hex
from bs_cluster.report.record import SweepReport
from bs_cluster.router.fit import TrainedRouter, route, train_router
from bs_cluster.router.gates import serve_weights
from bs_cluster.router.holdout import split_holdout
from bs_cluster.router.regret import regret_report
from bs_cluster.sweep.combinations import full_mask
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.pool import EvaluatorPool
from bs_cluster.sweep.sweep import encode_prompts, run_sweep, score_rows
from bs_cluster.sweep.targets import targets_BD


@dataclass(frozen=True)
class Routing:
    """What the second half found. ``losses`` are those of the held-out sweep rows, under every mode."""

    table: OutcomeTable
    trained: TrainedRouter
    input_size: int
    losses: ModeLosses
    regret: dict[str, Any]
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


def sweep_digest(manifests: Sequence[StackManifest], rows: Mapping[str, DomainRows], domains: Sequence[str]) -> str:
    """What outcomes depend on: the stacks and the rows. Parts measured under this digest may be used again."""
    parts = [[m.digest() for m in manifests], list(domains), [rows[domain].fingerprint for domain in domains]]
    return sha256_hex(canonical_json(parts))


def parent_mask(manifests: Sequence[StackManifest], domain: str, domains: Sequence[str]) -> int:
    """The domains that fired while ``domain`` trained its last stack, itself included, as a bitmask."""
    own = [m for m in manifests if m.stack.domain == domain]
    active = {domain, *(stack.domain for stack in own[-1].context)} if own else set()
    return sum(1 << d for d, name in enumerate(domains) if name in active)


def sweep_and_route(
    campaign: Campaign,
    evaluators: Sequence[Any],
    rows: Mapping[str, DomainRows],
    on_progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> Routing:
    """Measures the outcomes, trains the meta-router on part of the rows and judges it on the rest."""
    config, store, domains = campaign.config, campaign.store, campaign.domains
    manifests = [manifest for _, manifest in store.stacks()]
    sweep_rows = [row for domain in domains for row in rows[domain].sweep]
    area = store.sweep_area(sweep_digest(manifests, rows, domains))
    started = time.monotonic()
    held_before = area.read()
    table = run_sweep(evaluators, sweep_rows, domains, config.sweep, area, on_progress)
    swept = time.monotonic()
    measured = len(table) - (0 if held_before is None else held_before.num_rows)

    prompts = [prompt for domain in domains for prompt in rows[domain].router_prompts]
    states = encode_prompts(evaluators, prompts, config.sweep)
    train, holdout = split_holdout(table.row_ids, table.row_domains, config.router.holdout)
    target_BD = targets_BD(table.subset(train), config.router.targets)
    say(f"{'meta-router':<14} training on {len(train)} rows, {len(holdout)} held out")
    trained = train_router([states[i] for i in train], target_BD, config.router, config.seed)
    logits_BD = route(trained.router, [states[i] for i in holdout])
    weights_BD = serve_weights(logits_BD, domains, config.router.floors, config.router.gate_threshold).numpy()
    routed = score_rows(evaluators, [sweep_rows[i] for i in holdout], weights_BD, config.sweep)
    routed_B = np.array([loss.nll / loss.tokens for loss in routed])
    ended = time.monotonic()
    held = table.subset(holdout)
    regret = regret_report(table, train, holdout, routed_B, weights_BD)
    return Routing(
        table=table,
        trained=trained,
        input_size=states[0].shape[1],
        losses=mode_losses(held, routed, manifests, regret["best_single"]),
        regret=regret,
        gates=_mean_gates(held, weights_BD, domains),
        sweep=SweepReport(
            rows=len(sweep_rows),
            combinations=len(table.masks()),
            rows_per_s=measured / (swept - started) if measured else None,
            seconds=swept - started,
            reused=len(table) - measured,
        ),
        timing={"sweep": swept - started, "router": ended - swept},
    )


def mode_losses(
    held: OutcomeTable, routed: Sequence[RowLoss], manifests: Sequence[StackManifest], best_single: str
) -> ModeLosses:
    """Every mode on the rows of ``held``: read off the table, but for the routed one, measured in the same order."""
    domains = held.domains
    everything, single = full_mask(len(domains)), 1 << domains.index(best_single)
    beside = {domain: parent_mask(manifests, domain, domains) for domain in domains}
    nll: dict[str, list[float | None]] = {
        mode: [] for mode in ("base", "isolated", "parents", "ungated", "routed", "label", "best_single", "oracle")
    }
    for row, (owner, tokens) in enumerate(zip(held.row_domains, held.tokens_B.tolist(), strict=True)):
        measured = {mask: mean * tokens for mask, mean in held.losses(row).items()}
        own = 1 << domains.index(owner)
        masks = {"base": 0, "isolated": own, "parents": beside[owner], "ungated": everything, "label": own}
        for mode, mask in (masks | {"best_single": single}).items():
            nll[mode].append(measured.get(mask))
        nll["routed"].append(routed[row].nll)
        nll["oracle"].append(min(measured.values()))
    return ModeLosses(
        held.row_ids, held.row_domains, tuple(held.tokens_B.tolist()), {mode: tuple(v) for mode, v in nll.items()}
    )


def _mean_gates(held: OutcomeTable, weights_BD: np.ndarray, domains: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean served gate weight per domain, by the rows' own domain."""
    owners = np.array(held.row_domains)
    return {
        domain: dict(zip(domains, weights_BD[owners == domain].mean(axis=0).tolist(), strict=True))
        for domain in domains
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
