"""Teaching a meta-router from outcomes, and judging it on rows that it never saw.

Shapes: B rows, D domains, C combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bs_cluster.base import pool_states
from bs_cluster.config.schema import RouterSection
from bs_cluster.failpoints import failpoint
from bs_cluster.router.anchor import Anchor
from bs_cluster.router.filled import filled_nll
from bs_cluster.router.folds import deal_folds
from bs_cluster.router.learned import Gates, Outcomes, Prompts, fit_gates, gate_inputs, replay_of
from bs_cluster.router.learned_choice import Choice, choose_gates
from bs_cluster.router.multilinear import choose, members
from bs_cluster.router.network_fit import train_router
from bs_cluster.router.routers import AnchoredRouter, NetworkRouter, Router
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.owners import KINDS, kind_of
from bs_cluster.sweep.search import opening
from bs_cluster.sweep.targets import targets_BD


@dataclass(frozen=True)
class Lessons:
    """All that a meta-router learns from: outcomes, the states of their rows' prompts in the same order, and the
    anchor, which knows training prompts alone. All of a small sweep's rows, else a sample (``folds.sample_rows``)."""

    table: OutcomeTable
    states: Sequence[np.ndarray]
    anchor: Anchor
    settings: RouterSection
    seed: int

    def masks(self, table: OutcomeTable) -> list[int]:
        """What a router taught by ``table``, some of these rows, may serve: every combination that was measured for
        some row; where there are more than ``learn_combinations``, those that a search begins with, and of the others
        the ones that are best for the most rows of ``table``."""
        masks, most = self.table.masks(), self.settings.learn_combinations
        if len(masks) <= most:
            return masks
        first = opening(len(table.domains))
        row_N, mask_N, nll_N = table.outcomes()
        mask_K, wins_K = np.unique(mask_N[nll_N == table.best_nll()[row_N]], return_counts=True)
        others_K = ~np.isin(mask_K, first)
        mask_K, wins_K = mask_K[others_K], wins_K[others_K]
        best = mask_K[np.lexsort((mask_K, -wins_K))][: max(most - len(first), 0)]
        return np.sort(np.concatenate([first, best])).tolist()


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
    failpoint("router.fit")
    table, states = lessons.table.subset(rows), [lessons.states[row] for row in rows]
    masks = lessons.masks(table)
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


class CrossFit(NamedTuple):
    """Combinations (B,) int64 chosen for every row by what never saw it: the meta-router, and the domain that is best
    alone for rows of its kind. ``anchor_B`` is the anchor's choice, which saw no outcome at all."""

    routed_B: np.ndarray
    anchor_B: np.ndarray
    best_single_B: np.ndarray


@dataclass(frozen=True)
class Judges:
    """For every fold what never saw a row of it: a meta-router, and by kind of rows the domain that is best alone."""

    anchor: Anchor
    served: dict[int, Served]
    best_single: dict[int, dict[str, int]]

    def choose(
        self, states: Sequence[np.ndarray], owners: Sequence[str], domains: Sequence[str], fold_B: np.ndarray
    ) -> CrossFit:
        """What is chosen for rows of these owners and folds."""
        prompts = self._prompts(states)  # once for all: it is what judging costs
        logits_BD = self._logits(states, prompts, fold_B)
        routed_B, single_B = np.zeros(len(fold_B), dtype=np.int64), np.zeros(len(fold_B), dtype=np.int64)
        for fold in np.unique(fold_B).tolist():
            held = np.flatnonzero(fold_B == fold)
            routed_B[held] = choose(logits_BD[held], self.served[fold].masks)
            single_B[held] = [self.best_single[fold][kind_of(owners[row], domains)] for row in held.tolist()]
        # The anchor opens one gate at most, and every router has none and each alone among its combinations.
        masks = next(iter(self.served.values())).masks
        return CrossFit(routed_B, choose(prompts.anchor_BD, masks), single_B)

    def logits(self, states: Sequence[np.ndarray], fold_B: np.ndarray) -> np.ndarray:
        """Gate logits (B, D) float64 of rows of these folds."""
        return self._logits(states, self._prompts(states), fold_B)

    def _prompts(self, states: Sequence[np.ndarray]) -> Prompts:
        return gate_inputs(self.anchor, np.stack([s if s.ndim == 1 else pool_states(s) for s in states]))

    def _logits(self, states: Sequence[np.ndarray], prompts: Prompts, fold_B: np.ndarray) -> np.ndarray:
        logits_BD = np.zeros(prompts.anchor_BD.shape)
        for fold in np.unique(fold_B).tolist():
            held, router = np.flatnonzero(fold_B == fold), self.served[fold].router
            if isinstance(router, AnchoredRouter):
                logits_BD[held] = router.gated(prompts.select(held))
            else:
                logits_BD[held] = router.logits([states[row] for row in held.tolist()])
        return logits_BD


def fit_judges(lessons: Lessons, fold_B: np.ndarray, folds: Sequence[int]) -> Judges:
    """A judge for each of ``folds``, taught without its rows; ``fold_B`` are the folds of the rows of ``lessons``."""
    served, best_single = {}, {}
    for fold in folds:
        train = np.flatnonzero(fold_B != fold)
        served[fold] = fit_router(lessons, train.tolist())
        best_single[fold] = _best_singles(lessons.table, train)
    return Judges(lessons.anchor, served, best_single)


def cross_fit(lessons: Lessons) -> CrossFit:
    """Every row judged by a router trained without its fold; foreign rows by one that met no row of their kind."""
    table = lessons.table
    fold_B = deal_folds(table.row_ids, table.owners, table.domains, lessons.settings.folds, lessons.seed)
    judges = fit_judges(lessons, fold_B, np.unique(fold_B).tolist())
    return judges.choose(lessons.states, table.owners, table.domains, fold_B)


def _best_singles(table: OutcomeTable, train: np.ndarray) -> dict[str, int]:
    """For each kind of row the one domain that, always on alone, is best over the training rows of its kind."""
    kind_B = np.array([kind_of(owner, table.domains) for owner in table.owners])
    nll_BD = table.nll_BC([1 << d for d in range(len(table.domains))])
    best = {}
    for kind in KINDS:
        seen = train[kind_B[train] == kind]
        best[kind] = 1 << int(nll_BD[seen if len(seen) else train].sum(axis=0).argmin())
    return best
