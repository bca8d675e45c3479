"""The meta-router's second stage: away from the anchor, as far as measured losses say so.

Gate logits are ``anchor + φ W``, with φ the prompt's similarities and whitened directions. W minimises the expected
loss of the gates over rows whose outcomes were measured (``multilinear``), in the one metric of all losses, nats per
completion token, plus ``shrinkage · |W|²``. At W = 0 it is the anchor.

A few rows of a domain must not be bought with the many that were not swept. So some of every domain's training prompts
are replayed: each stands for the mean outcome of its domain's swept rows. They cost no outcome, and hold the gates to
what is known of a domain wherever its prompts lie.

Shapes: B rows, N replayed prompts, D domains, C combinations, K whitened directions, P = D + K + 1 inputs of the gates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bs_cluster.router.anchor import Anchor
from bs_cluster.router.multilinear import expected_loss

# An anchor that is sure of itself would leave the gates no slope to learn on.
SUREST = 3.0
STEPS = 30
REPLAYED, REPLAYED_IN_ALL = 250, 5000  # training prompts of each domain at most, and of all domains
REPLAY_WEIGHT = 3.0  # of a domain's replayed prompts together, in its swept rows


@dataclass(frozen=True)
class Outcomes:
    """Summed losses (B, C) of rows under combinations, their completion tokens (B,), and the domain of each (B,) int64,
    -1 for a row that no domain owns."""

    nll_BC: np.ndarray
    tokens_B: np.ndarray
    domain_B: np.ndarray
    member_CD: np.ndarray

    def select(self, rows: np.ndarray) -> Outcomes:
        return Outcomes(self.nll_BC[rows], self.tokens_B[rows], self.domain_B[rows], self.member_CD)


@dataclass(frozen=True)
class Prompts:
    """Prompts as the gates see them: whitened directions (B, K), similarities with domains (B, D), the anchor's logits
    (B, D), and inputs (B, P)."""

    directions_BK: np.ndarray
    similarity_BD: np.ndarray
    anchor_BD: np.ndarray
    inputs_BP: np.ndarray

    def select(self, rows: np.ndarray) -> Prompts:
        return Prompts(*(array[rows] for array in self.__dict__.values()))


@dataclass(frozen=True)
class Replay:
    """Some of each domain's training prompts (N), and the domain of each (N,) int64."""

    prompts: Prompts
    domain_N: np.ndarray


def gate_inputs(anchor: Anchor, features_BF: np.ndarray) -> Prompts:
    """What the anchor makes of pooled states (B, F)."""
    directions_BK = anchor.directions(features_BF)
    return _inputs(anchor, directions_BK, anchor.similarity(directions_BK))


def replay_of(anchor: Anchor) -> Replay:
    """Training prompts out of the anchor's bank, evenly taken, each seen as if it were not in the bank."""
    most = min(REPLAYED, max(REPLAYED_IN_ALL // anchor.domain_count, 1))
    places = [np.flatnonzero(anchor.owner_N == d) for d in range(anchor.domain_count)]
    chosen_N = np.concatenate([own[np.linspace(0, len(own) - 1, min(most, len(own))).astype(int)] for own in places])
    similarity_ND = anchor.similarity(anchor.bank_NK[chosen_N], chosen_N)
    return Replay(_inputs(anchor, anchor.bank_NK[chosen_N], similarity_ND), anchor.owner_N[chosen_N])


def _inputs(anchor: Anchor, directions_BK: np.ndarray, similarity_BD: np.ndarray) -> Prompts:
    nearness_BD = (similarity_BD - anchor.limit_D) / anchor.spread_D
    parts = (nearness_BD, np.sqrt(directions_BK.shape[1]) * directions_BK, np.ones((len(directions_BK), 1)))
    return Prompts(directions_BK, similarity_BD, anchor.logits(similarity_BD), np.concatenate(parts, axis=1))


def fit_gates(prompts: Prompts, outcomes: Outcomes, replay: Replay, shrinkage: float) -> np.ndarray:
    """``W`` (P, D) float64. Deterministic: it starts at zero, and every step sees every row."""
    replayed = _replayed(outcomes, replay)
    start_BD = torch.from_numpy(np.concatenate([prompts.anchor_BD, replay.prompts.anchor_BD])).double()
    start_BD = start_BD.clamp(-SUREST, SUREST)
    inputs_BP = torch.from_numpy(np.concatenate([prompts.inputs_BP, replay.prompts.inputs_BP])).double()
    member_CD = torch.from_numpy(outcomes.member_CD).double()
    loss_BC = torch.from_numpy(np.concatenate([outcomes.nll_BC, replayed]) / outcomes.tokens_B.sum()).double()
    weight_PD = torch.zeros(inputs_BP.shape[1], start_BD.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_PD], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    @torch.no_grad()
    def closure() -> torch.Tensor:
        expected_B, slope_BD = expected_loss(start_BD + inputs_BP @ weight_PD, loss_BC, member_CD)
        weight_PD.grad = inputs_BP.T @ slope_BD + 2 * shrinkage * weight_PD
        return expected_B.sum() + shrinkage * weight_PD.square().sum()

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight_PD.detach().numpy()


def _replayed(outcomes: Outcomes, replay: Replay) -> np.ndarray:
    """Losses (N, C) of replayed prompts: all of a domain's together weigh ``REPLAY_WEIGHT`` times its swept rows."""
    nll_NC = np.zeros((len(replay.domain_N), outcomes.nll_BC.shape[1]))
    for d in np.unique(replay.domain_N):
        own_N = replay.domain_N == d
        nll_NC[own_N] = REPLAY_WEIGHT * outcomes.nll_BC[outcomes.domain_B == d].sum(axis=0) / own_N.sum()
    return nll_NC


@dataclass(frozen=True)
class Gates:
    """Learned gates: ``weight_PD``, and whether they decide ``everywhere`` or only for prompts that lie within no
    domain's limit. Within one, there are a domain's own training prompts by the hundred, and few swept rows."""

    weight_PD: np.ndarray
    everywhere: bool

    def logits(self, prompts: Prompts) -> np.ndarray:
        """Gate logits (B, D)."""
        learned_BD = np.clip(prompts.anchor_BD, -SUREST, SUREST) + prompts.inputs_BP @ self.weight_PD
        if self.everywhere:
            return learned_BD
        within_B1 = (prompts.anchor_BD > 0).any(axis=1, keepdims=True)
        return np.where(within_B1, prompts.anchor_BD, learned_BD)
