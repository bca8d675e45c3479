"""Teaching a meta-router from outcomes, and judging it on rows that it never saw.

Shapes: B rows, D domains, C combinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bs_cluster.base.hidden import pool_states
from bs_cluster.config.schema import RouterSection
from bs_cluster.failpoints import failpoint
from bs_cluster.router.anchor import Anchor
from bs_cluster.router.familiar import Kinds
from bs_cluster.router.filled import filled_nll
from bs_cluster.router.gated import Score, gated_nll
from bs_cluster.router.learned import Gates, Outcomes, Prompts, Replay, fit_gates, gate_inputs, replay_of
from bs_cluster.router.learned_choice import CANDIDATES, SHRINKAGES, Candidate, Choice, Trial, choose_gates
from bs_cluster.router.multilinear import members
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
        """What a router taught by ``table``, some of these rows, chooses from: every combination that was measured for
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
    """A trained router and the combinations that its logits choose from; ``choice`` is None for the network."""

    router: Router
    masks: tuple[int, ...]
    choice: Choice | None

    def gates(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """The gate weights (B, D) that each prompt is answered under."""
        return self.router.gates(states, self.masks)


class CrossFit(NamedTuple):
    """What every row would be answered under, decided by what never saw it: the meta-router's gates (B, D), and the
    domain that is best alone for rows of its kind, as a combination (B,) int64. The anchor's gates saw no outcome."""

    routed_BD: np.ndarray
    anchor_BD: np.ndarray
    best_single_B: np.ndarray


@dataclass(frozen=True)
class Judges:
    """For every fold what never saw a row of it: the anchor alone, a meta-router, and by kind of rows the domain that
    is best alone."""

    anchors: dict[int, AnchoredRouter]
    served: dict[int, Served]
    best_single: dict[int, dict[str, int]]

    @property
    def anchor(self) -> Anchor:
        return next(iter(self.anchors.values())).anchor

    def choose(
        self, states: Sequence[np.ndarray], owners: Sequence[str], domains: Sequence[str], fold_B: np.ndarray
    ) -> CrossFit:
        """What is decided for rows of these owners and folds."""
        # Once for all: it is what judging costs.
        prompts = gate_inputs(self.anchor, _pooled(states))
        routed_BD, anchor_BD = np.zeros(prompts.anchor_BD.shape), np.zeros(prompts.anchor_BD.shape)
        single_B = np.zeros(len(fold_B), dtype=np.int64)
        for fold in np.unique(fold_B).tolist():
            held, served = np.flatnonzero(fold_B == fold), self.served[fold]
            if isinstance(served.router, AnchoredRouter):
                routed_BD[held] = served.router.gated(prompts.select(held), served.masks)
            else:
                routed_BD[held] = served.gates([states[row] for row in held.tolist()])
            anchor_BD[held] = self.anchors[fold].gated(prompts.select(held), served.masks)
            single_B[held] = [self.best_single[fold][kind_of(owners[row], domains)] for row in held.tolist()]
        return CrossFit(routed_BD, anchor_BD, single_B)


class Taught(NamedTuple):
    """What judges every row, and what is served: the router that learned from all."""

    judges: Judges
    served: Served


def teach(lessons: Lessons, fold_B: np.ndarray, folds: Sequence[int], score: Score) -> Taught:
    """A judge for each of ``folds``, taught without its rows, and the router to serve. ``fold_B`` are the folds of the
    rows of ``lessons``, ``score`` measures them under gates. Deterministic by ``lessons.seed``.

    How far a judge leaves the anchor is decided by what the rows of other folds lose under gates that did not learn
    from them.
    """
    failpoint("router.fit")
    every = np.arange(len(fold_B))
    others = {fold: every[fold_B != fold] for fold in folds}
    singles = {fold: _best_singles(lessons.table, rows) for fold, rows in others.items()}
    prompts = gate_inputs(lessons.anchor, _pooled(lessons.states))
    if lessons.settings.kind == "network":
        anchors = {fold: _anchor_alone(lessons, prompts, rows) for fold, rows in others.items()}
        judging = {fold: _network(lessons, rows) for fold, rows in others.items()}
        return Taught(Judges(anchors, judging, singles), _network(lessons, every))
    school = _School(lessons, prompts, replay_of(lessons.anchor))
    learned = {fold: school.learn(rows, SHRINKAGES) for fold, rows in others.items()}
    trial = _try(school, learned, fold_B, score)
    judging = {}
    for fold, rows in others.items():
        judging[fold] = learned[fold].served(choose_gates(trial.select(rows)))
    anchors = {fold: known.anchor for fold, known in learned.items()}
    choice = choose_gates(trial)
    shrinkages = (choice.learned.shrinkage,) if choice.learned else ()
    return Taught(Judges(anchors, judging, singles), school.learn(every, shrinkages).served(choice))


def _anchor_alone(lessons: Lessons, prompts: Prompts, rows: np.ndarray) -> AnchoredRouter:
    """The anchor, which knows the kinds of these rows."""
    owners = [lessons.table.owners[row] for row in rows.tolist()]
    return AnchoredRouter(lessons.anchor, Kinds.of(lessons.anchor, prompts.directions_BK[rows], owners), None)


def _pooled(states: Sequence[np.ndarray]) -> np.ndarray:
    """Pooled states (B, F), of pooled ones or of every token's."""
    return np.stack([one if one.ndim == 1 else pool_states(one) for one in states])


def _network(lessons: Lessons, rows: np.ndarray) -> Served:
    table, settings = lessons.table.subset(rows.tolist()), lessons.settings
    states = [lessons.states[row] for row in rows.tolist()]
    trained = train_router(states, targets_BD(table, settings.targets), settings.network, lessons.seed)
    return Served(NetworkRouter(trained.router), tuple(lessons.masks(table)), None)


@dataclass(frozen=True)
class _Learned:
    """The anchor alone, weights (P, D) by shrinkage, and the combinations that they weigh."""

    anchor: AnchoredRouter
    masks: tuple[int, ...]
    weights: dict[float, np.ndarray]

    def router(self, candidate: Candidate | None) -> AnchoredRouter:
        if candidate is None:
            return self.anchor
        return replace(self.anchor, learned=Gates(self.weights[candidate.shrinkage], candidate.everywhere))

    def served(self, choice: Choice) -> Served:
        return Served(self.router(choice.learned), self.masks, choice)


@dataclass(frozen=True)
class _School:
    lessons: Lessons
    prompts: Prompts
    replay: Replay

    def learn(self, rows: np.ndarray, shrinkages: Sequence[float]) -> _Learned:
        """What these rows teach."""
        table = self.lessons.table.subset(rows.tolist())
        masks = self.lessons.masks(table)
        place = {domain: d for d, domain in enumerate(table.domains)}
        domain_B = np.array([place.get(owner, -1) for owner in table.owners], dtype=np.int64)
        member_CD = members(masks, len(table.domains)).numpy()
        outcomes = Outcomes(filled_nll(table, masks), table.tokens_B, domain_B, member_CD)
        prompts = self.prompts.select(rows)
        weights = {s: fit_gates(prompts, outcomes, self.replay, s) for s in shrinkages}
        return _Learned(_anchor_alone(self.lessons, self.prompts, rows), tuple(masks), weights)


def _try(school: _School, learned: Mapping[int, _Learned], fold_B: np.ndarray, score: Score) -> Trial:
    """Every row under the anchor's gates and under every candidate's, of what was taught without its fold."""
    table, count = school.lessons.table, len(fold_B)
    gates_KBD = np.zeros((1 + len(CANDIDATES), count, len(table.domains)))
    for fold in np.unique(fold_B).tolist():
        held, known = np.flatnonzero(fold_B == fold), learned[fold]
        prompts = school.prompts.select(held)
        for k, candidate in enumerate((None, *CANDIDATES)):
            gates_KBD[k, held] = known.router(candidate).gated(prompts, known.masks)
    row_N = np.tile(np.arange(count), len(gates_KBD))
    nll_KB = gated_nll(table, row_N, gates_KBD.reshape(len(row_N), -1), score).reshape(len(gates_KBD), count)
    owned_B = np.array([owner in table.domains for owner in table.owners])
    return Trial(nll_KB[0], nll_KB[1:], table.tokens_B, owned_B)


def _best_singles(table: OutcomeTable, train: np.ndarray) -> dict[str, int]:
    """For each kind of row the one domain that, always on alone, is best over the training rows of its kind."""
    kind_B = np.array([kind_of(owner, table.domains) for owner in table.owners])
    nll_BD = table.nll_BC([1 << d for d in range(len(table.domains))])
    best = {}
    for kind in KINDS:
        seen = train[kind_B[train] == kind]
        best[kind] = 1 << int(nll_BD[seen if len(seen) else train].sum(axis=0).argmin())
    return best
