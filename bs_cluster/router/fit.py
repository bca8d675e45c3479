"""Teaching a meta-router from outcomes, and judging it on rows that it never saw.

Shapes: B rows, D domains, C combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bs_cluster.base import pool_states
from bs_cluster.config.schema import RouterSection
from bs_cluster.router.anchor import Anchor
from bs_cluster.router.filled import filled_nll
from bs_cluster.router.folds import deal_folds
from bs_cluster.router.learned import Gates, Outcomes, fit_gates, gate_inputs, replay_of
from bs_cluster.router.learned_choice import Choice, choose_gates
from bs_cluster.router.multilinear import choose, members
from bs_cluster.router.network_fit import train_router
from bs_cluster.router.routers import AnchoredRouter, NetworkRouter, Router
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.owners import kind_of
from bs_cluster.sweep.targets import targets_BD


@dataclass(frozen=True)
class Lessons:
    """All that a meta-router learns from: outcomes, the states of their rows' prompts in the same order, and the
    anchor, which knows training prompts alone."""

    table: OutcomeTable
    states: Sequence[np.ndarray]
    anchor: Anchor
    settings: RouterSection
    seed: int

    @property
    def masks(self) -> list[int]:
        """What may be served: every combination that was measured for some row."""
        return self.table.masks()


@dataclass(frozen=True)
class Served:
    """A trained router and the combinations it chooses from; ``choice`` is None for the network."""

    router: Router
    masks: tuple[int, ...]
    choice: Choice | None

    def choose(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """The combination (B,) int64 that each prompt is answered with."""
        return choose(self.router.logits(states), self.masks)


def fit_router(lessons: Lessons, rows: Sequence[int]) -> Served:
    """The router that these rows of the table teach. Deterministic by ``lessons.seed``."""
    table, states = lessons.table.subset(rows), [lessons.states[row] for row in rows]
    masks = lessons.masks
    if lessons.settings.kind == "network":
        trained = train_router(
            states, targets_BD(table, lessons.settings.targets), lessons.settings.network, lessons.seed
        )
        return Served(NetworkRouter(trained.router), tuple(masks), None)
    prompts = gate_inputs(lessons.anchor, np.stack(states))
    member_CD = members(masks, len(table.domains)).numpy()
    place = {domain: d for d, domain in enumerate(table.domains)}
    domain_B = np.array([place.get(owner, -1) for owner in table.owners], dtype=np.int64)
    outcomes = Outcomes(filled_nll(table, masks), table.tokens_B, domain_B, member_CD)
    replay = replay_of(lessons.anchor)
    choice = choose_gates(
        prompts, outcomes, replay, table.row_ids, table.owners, table.domains, masks, seed=lessons.seed
    )
    gates = None
    if choice.shrinkage is not None:
        gates = Gates(fit_gates(prompts, outcomes, replay, choice.shrinkage), choice.everywhere)
    return Served(AnchoredRouter(lessons.anchor, gates), tuple(masks), choice)


@dataclass(frozen=True)
class CrossFit:
    """Combinations (B,) int64 chosen for every row by what never saw it: the meta-router, and the domain that is best
    alone for rows of its kind. ``anchor_B`` is the anchor's choice, which saw no outcome at all."""

    routed_B: np.ndarray
    anchor_B: np.ndarray
    best_single_B: np.ndarray


def cross_fit(lessons: Lessons) -> CrossFit:
    """Every row judged by a router trained without its fold; foreign rows by one that met no row of their kind."""
    table = lessons.table
    fold_B = deal_folds(table.row_ids, table.owners, table.domains, lessons.settings.folds, lessons.seed)
    routed_B, single_B = np.zeros(len(fold_B), dtype=np.int64), np.zeros(len(fold_B), dtype=np.int64)
    for fold in np.unique(fold_B).tolist():
        held, train = np.flatnonzero(fold_B == fold), np.flatnonzero(fold_B != fold)
        routed_B[held] = fit_router(lessons, train.tolist()).choose([lessons.states[row] for row in held.tolist()])
        single_B[held] = _best_singles(table, train, held)
    features = [states if states.ndim == 1 else pool_states(states) for states in lessons.states]
    anchor_B = choose(AnchoredRouter(lessons.anchor, None).logits(features), lessons.masks)
    return CrossFit(routed_B, anchor_B, single_B)


def _best_singles(table: OutcomeTable, train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """For each held row the one domain that, always on alone, is best over the training rows of its kind."""
    kind_B = np.array([kind_of(owner, table.domains) for owner in table.owners])
    nll_BD = table.nll_BC([1 << d for d in range(len(table.domains))])
    best = {}
    for kind in set(kind_B[held].tolist()):
        seen = train[kind_B[train] == kind]
        best[kind] = 1 << int(nll_BD[seen if len(seen) else train].sum(axis=0).argmin())
    return np.array([best[kind] for kind in kind_B[held]], dtype=np.int64)
