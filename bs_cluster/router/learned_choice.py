"""How far to leave the anchor, if at all: decided by what rows lose under gates that did not learn from them.

Shapes: B rows, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bs_cluster.estimates import Estimate, estimate

# What learning may cost on rows whose domain is known, where the anchor is hard to beat, in nats per token: the mean
# and its standard error together. What decides within a domain's limit too has to be better there.
HARM = 0.005


@dataclass(frozen=True)
class Candidate:
    """A way to learn: ``shrinkage`` as of ``fit_gates``, ``everywhere`` as of ``Gates``."""

    shrinkage: float
    everywhere: bool


# From nearly the anchor to nearly free, the most careful first: what leaves a domain's surroundings to the domain, and
# of that what is shrunk most. None of them is a setting: what was measured chooses.
SHRINKAGES = (1.0, 0.3, 0.1, 0.03)
CANDIDATES = tuple(Candidate(shrinkage, everywhere) for everywhere in (False, True) for shrinkage in SHRINKAGES)


@dataclass(frozen=True)
class Trial:
    """Measured losses of rows, summed over their tokens (B,), under the gates of the anchor (B,) and of every candidate
    (K, B), each taught without the row's fold. ``owned_B`` says which rows a domain owns."""

    anchor_B: np.ndarray
    nll_KB: np.ndarray
    tokens_B: np.ndarray
    owned_B: np.ndarray

    def select(self, rows: np.ndarray) -> Trial:
        return Trial(self.anchor_B[rows], self.nll_KB[:, rows], self.tokens_B[rows], self.owned_B[rows])


@dataclass(frozen=True)
class Choice:
    """``learned`` is None where nothing was better than the anchor; ``change`` is the loss of what was chosen (or else
    of the best candidate) less the anchor's, over the rows of the trial."""

    learned: Candidate | None
    change: Estimate


def choose_gates(trial: Trial) -> Choice:
    """The most careful candidate whose loss is within a standard error of the best, among those that are below the
    anchor by more than their standard error, and on the domains' own rows cost no more than ``HARM``, or gain where
    they decide everywhere."""
    changes = [estimate(nll_B - trial.anchor_B, trial.tokens_B) for nll_B in trial.nll_KB]
    allowed = [
        k
        for k, (candidate, change) in enumerate(zip(CANDIDATES, changes, strict=True))
        if change.mean + change.error < 0 and _cost(trial, k) <= (0.0 if candidate.everywhere else HARM)
    ]
    if not allowed:
        return Choice(None, min(changes, key=lambda change: change.mean))
    best = min(allowed, key=lambda k: changes[k].mean)
    for k in allowed:
        behind = estimate(trial.nll_KB[k] - trial.nll_KB[best], trial.tokens_B)
        if behind.mean <= behind.error:
            return Choice(CANDIDATES[k], changes[k])
    raise AssertionError("the best is within a standard error of itself")


def _cost(trial: Trial, k: int) -> float:
    """Loss of a candidate less the anchor's on the domains' own rows, its standard error on top."""
    owned_B = trial.owned_B
    if not owned_B.any():
        return 0.0
    cost = estimate((trial.nll_KB[k] - trial.anchor_B)[owned_B], trial.tokens_B[owned_B])
    return cost.mean + cost.error
