"""Prompts and outcomes with known answers: clusters of states, and losses that say which domains such a prompt needs.

A world has three domains. A row of an owner lies near that owner's centre; a mixed row half way between two; a foreign
one near a centre of its own. ``needs`` maps an owner to the combination that serves it best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bs_cluster.config.schema import RouterSection
from bs_cluster.records import RowLoss
from bs_cluster.router.anchor import Anchor, fit_anchor
from bs_cluster.router.familiar import Kinds
from bs_cluster.router.fit import Lessons, Taught, teach
from bs_cluster.router.folds import deal_folds
from bs_cluster.router.gated import Score
from bs_cluster.router.learned import Gates
from bs_cluster.router.regret import Judged
from bs_cluster.router.routers import AnchoredRouter
from bs_cluster.sweep.combinations import all_masks, mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable

DOMAINS = ("chat", "code", "math")
WIDTH = 24
OWN = {"chat": 0b001, "code": 0b010, "math": 0b100}
BASE_LOSS, GAIN, HARM, NOISE = 3.0, 1.0, 0.4, 0.05


def features(owner: str, count: int, seed: int) -> np.ndarray:
    """Pooled states (count, WIDTH) of prompts of ``owner``; ``mixed:a_b`` lies between the domains a and b."""
    world = np.random.default_rng(7)
    centre = {name: world.normal(size=WIDTH) for name in DOMAINS}
    centre |= {f"foreign:{n}": world.normal(size=WIDTH) for n in range(6)}
    if owner.startswith("mixed:"):
        a, b = owner.removeprefix("mixed:").split("_")
        middle = (centre[a] + centre[b]) / 2
    else:
        middle = centre[owner]
    draw = np.random.default_rng([seed, sum(owner.encode())])
    return (middle + 0.35 * draw.normal(size=(count, WIDTH))).astype(np.float32)


def anchor_of(domains: Sequence[str] = DOMAINS, prompts: int = 60) -> Anchor:
    states = np.concatenate([features(name, prompts, seed=1) for name in domains])
    return fit_anchor(states, np.repeat(np.arange(len(domains)), prompts), len(domains))


def anchored(anchor: Anchor, learned: Gates | None = None) -> AnchoredRouter:
    """A router that knows no kinds of rows."""
    return AnchoredRouter(anchor, Kinds.of(anchor, anchor.bank_NK[:0], ()), learned)


def losses(need: int, rows: int, seed: int) -> np.ndarray:
    """Losses (rows, 8): a combination gains its share of ``need``, and every other domain in it harms."""
    draw = np.random.default_rng(seed)
    loss_C = [
        BASE_LOSS - (GAIN * (m & need).bit_count() / need.bit_count() if need else 0) + HARM * (m & ~need).bit_count()
        for m in all_masks(3)
    ]
    return np.array(loss_C) + NOISE * draw.normal(size=(rows, 8))


def lessons(needs: Mapping[str, int], rows: int = 20, seed: int = 0, **settings) -> Lessons:
    """``rows`` of each owner with their outcomes under all combinations."""
    owners = [owner for owner in needs for _ in range(rows)]
    states = np.concatenate([features(owner, rows, seed=2 + seed) for owner in needs])
    loss_BC = np.concatenate([losses(need, rows, seed=i + 100 * seed) for i, need in enumerate(needs.values())])
    table = OutcomeTable([f"q{i}" for i in range(len(owners))], owners, DOMAINS)
    for row, loss_C in enumerate(loss_BC):
        for mask in all_masks(3):
            table.record(row, mask, RowLoss(10 * float(loss_C[mask]), 10))
    return Lessons(table, list(states), anchor_of(), RouterSection(**settings), seed)


def interpolated(table: OutcomeTable) -> Score:
    """Losses under gates between combinations, as if they were the mean over combinations: in this world, where every
    domain gains or harms by itself, that is what a weight does."""

    def score(row_N: np.ndarray, gates_ND: np.ndarray) -> np.ndarray:
        member_CD = np.array([mask_weights(mask, 3) for mask in all_masks(3)])
        share_NC = np.where(member_CD, gates_ND[:, None], 1 - gates_ND[:, None]).prod(axis=2)
        return (share_NC * table.nll_BC(all_masks(3))[row_N]).sum(axis=1)

    return score


def taught_by(lessons: Lessons, measured: OutcomeTable | None = None) -> Taught:
    """Judges and the served router of all rows of ``lessons``; losses under gates are those of ``measured``, which has
    every outcome, or of their own table."""
    fold_B = folds_of(lessons)
    return teach(lessons, fold_B, np.unique(fold_B).tolist(), interpolated(measured or lessons.table))


def folds_of(lessons: Lessons) -> np.ndarray:
    table = lessons.table
    return deal_folds(table.row_ids, table.owners, table.domains, lessons.settings.folds, lessons.seed)


def judge(lessons: Lessons) -> Judged:
    """Every row of ``lessons`` under the gates of what never saw it."""
    table = lessons.table
    score, row_B = interpolated(table), np.arange(len(lessons.states))
    fitted = taught_by(lessons).judges.choose(lessons.states, table.owners, table.domains, folds_of(lessons))
    return Judged.of(table, fitted, score(row_B, fitted.routed_BD), score(row_B, fitted.anchor_BD))
