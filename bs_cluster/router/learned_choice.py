"""How far to leave the anchor, if at all: decided inside the training rows, by the losses of what would be served.

Shapes: B rows, C combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bs_cluster.estimates import Estimate, estimate
from bs_cluster.router.folds import deal_folds
from bs_cluster.router.learned import Outcomes, Prompts, Replay, fit_gates, gate_logits
from bs_cluster.router.multilinear import choose

# From nearly the anchor to nearly free. None of them is a setting: cross-validation chooses.
SHRINKAGES = (1.0, 0.3, 0.1, 0.03, 0.01)
FOLDS = 4
# What learning may cost on rows whose domain is known, where the anchor is hard to beat, in nats per token.
HARM = 0.005


@dataclass(frozen=True)
class Choice:
    """``shrinkage`` is None where nothing was better than the anchor; ``gain`` is the cross-validated loss of the best
    candidate less the anchor's, on the training rows."""

    shrinkage: float | None
    gain: Estimate


def choose_shrinkage(
    prompts: Prompts,
    outcomes: Outcomes,
    replay: Replay,
    row_ids: Sequence[str],
    owners: Sequence[str],
    domains: Sequence[str],
    masks: Sequence[int],
    seed: int = 0,
) -> Choice:
    """The strongest shrinkage whose held-out loss is within a standard error of the best, among those that are below
    the anchor by more than their standard error and cost the domains' own rows no more than ``HARM``."""
    fold_B = deal_folds(row_ids, owners, domains, FOLDS, seed)
    column = {mask: place for place, mask in enumerate(masks)}
    owned_B, tokens_B = outcomes.domain_B >= 0, outcomes.tokens_B

    def served(logits_BD: np.ndarray, rows: np.ndarray) -> np.ndarray:
        places = [column[mask] for mask in choose(logits_BD, masks).tolist()]
        return outcomes.nll_BC[rows, places]

    every = np.arange(len(fold_B))
    anchor_B = served(prompts.anchor_BD, every)
    tried: list[tuple[float, np.ndarray, Estimate]] = []
    for shrinkage in SHRINKAGES:
        learned_B = np.empty(len(every))
        for fold in np.unique(fold_B):
            train, held = every[fold_B != fold], every[fold_B == fold]
            weight_PD = fit_gates(prompts.select(train), outcomes.select(train), replay, shrinkage)
            learned_B[held] = served(gate_logits(prompts.select(held), weight_PD), held)
        tried.append((shrinkage, learned_B, estimate(learned_B - anchor_B, tokens_B)))

    def better(learned_B: np.ndarray, gain: Estimate) -> bool:
        harm = (learned_B - anchor_B)[owned_B].sum() / max(tokens_B[owned_B].sum(), 1)
        return gain.mean + gain.error < 0 and harm <= HARM

    allowed = [(shrinkage, learned_B, gain) for shrinkage, learned_B, gain in tried if better(learned_B, gain)]
    if not allowed:
        return Choice(None, min((gain for _, _, gain in tried), key=lambda gain: gain.mean))
    best_B = min(allowed, key=lambda candidate: candidate[2].mean)[1]
    for shrinkage, learned_B, gain in allowed:  # the strongest first
        behind = estimate(learned_B - best_B, tokens_B)
        if behind.mean <= behind.error:
            return Choice(shrinkage, gain)
    raise AssertionError("the best is within a standard error of itself")
