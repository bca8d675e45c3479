"""How far to leave the anchor, if at all: decided inside the training rows, by the losses of what would be served.

Shapes: B rows, C combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bs_cluster.estimates import Estimate, estimate
from bs_cluster.router.folds import deal_folds
from bs_cluster.router.learned import Gates, Outcomes, Prompts, Replay, fit_gates
from bs_cluster.router.multilinear import choose

# From nearly the anchor to nearly free. None of them is a setting: cross-validation chooses.
SHRINKAGES = (1.0, 0.3, 0.1, 0.03, 0.01)
FOLDS = 4
# What learning may cost on rows whose domain is known, where the anchor is hard to beat, in nats per token: the mean
# and its standard error together.
HARM = 0.005


@dataclass(frozen=True)
class Choice:
    """``shrinkage`` is None where nothing was better than the anchor; ``everywhere`` as of ``Gates``; ``change`` is the
    cross-validated loss of what was chosen (or else of the best candidate) less the anchor's, on the training rows."""

    shrinkage: float | None
    everywhere: bool
    change: Estimate


@dataclass(frozen=True)
class _Candidate:
    shrinkage: float
    everywhere: bool
    nll_B: np.ndarray
    change: Estimate


def choose_gates(
    prompts: Prompts,
    outcomes: Outcomes,
    replay: Replay,
    row_ids: Sequence[str],
    owners: Sequence[str],
    domains: Sequence[str],
    masks: Sequence[int],
    seed: int = 0,
) -> Choice:
    """The most careful gates whose held-out loss is within a standard error of the best, among those that are below
    the anchor by more than their standard error and cost the domains' own rows no more than ``HARM``.

    Careful is what leaves a domain's surroundings to the domain, and of these what is shrunk most.
    """
    fold_B = deal_folds(row_ids, owners, domains, FOLDS, seed)
    column = {mask: place for place, mask in enumerate(masks)}
    owned_B, tokens_B = outcomes.domain_B >= 0, outcomes.tokens_B

    def served(logits_BD: np.ndarray, rows: np.ndarray) -> np.ndarray:
        places = [column[mask] for mask in choose(logits_BD, masks).tolist()]
        return outcomes.nll_BC[rows, places]

    every = np.arange(len(fold_B))
    anchor_B = served(prompts.anchor_BD, every)

    def harm(nll_B: np.ndarray) -> float:
        if not owned_B.any():
            return 0.0
        cost = estimate((nll_B - anchor_B)[owned_B], tokens_B[owned_B])
        return cost.mean + cost.error

    nll_B = {(everywhere, s): np.empty(len(every)) for everywhere in (False, True) for s in SHRINKAGES}
    for fold in np.unique(fold_B):
        train, held = every[fold_B != fold], every[fold_B == fold]
        for shrinkage in SHRINKAGES:
            weight_PD = fit_gates(prompts.select(train), outcomes.select(train), replay, shrinkage)
            for everywhere in (False, True):
                logits_BD = Gates(weight_PD, everywhere).logits(prompts.select(held))
                nll_B[everywhere, shrinkage][held] = served(logits_BD, held)
    tried = [  # the most careful first
        _Candidate(shrinkage, everywhere, own_B, estimate(own_B - anchor_B, tokens_B))
        for (everywhere, shrinkage), own_B in nll_B.items()
    ]
    allowed = [c for c in tried if c.change.mean + c.change.error < 0 and harm(c.nll_B) <= HARM]
    if not allowed:
        return Choice(None, False, min((c.change for c in tried), key=lambda change: change.mean))
    best = min(allowed, key=lambda c: c.change.mean)
    for c in allowed:
        behind = estimate(c.nll_B - best.nll_B, tokens_B)
        if behind.mean <= behind.error:
            return Choice(c.shrinkage, c.everywhere, c.change)
    raise AssertionError("the best is within a standard error of itself")
