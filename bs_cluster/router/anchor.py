"""The meta-router's first stage: which domain a prompt is nearest to, and whether it is near any at all.

Taught by the base's states of *training* prompts, of which there are hundreds for each domain and which cost no
outcome. Features are whitened by the spread within domains (as in linear discriminant analysis, so that what varies
inside a domain counts little), and a prompt is compared by cosine with its nearest training prompts of each domain.
A domain's gate opens for the prompts that are nearest to it, unless they are farther than its ``limit``, a quantile of
what its own held-out training prompts reach: domains differ in how closely their prompts lie. A prompt beyond every
limit is foreign, and the base answers. All closed form, no seed.

Shapes: B prompts, N training prompts, F features, K whitened directions, D domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bs_cluster.errors import DataError

DIRECTIONS = 128
# Share of the within-domain spread that is taken to be equal in every direction: few prompts say little about each.
SHRINKAGE = 0.1
NEIGHBOURS = 3
# Past this many standard deviations only that a feature is an outlier is kept.
CLIP = 5.0
FOLDS = 5
# Cosines in memory at a time, float32: fifty domains have 25,000 training prompts.
COSINES = 1 << 26
# The share of a domain's own prompts that may be taken for foreign ones, and the share that is not quite at home.
FOREIGN_QUANTILE, HOME_QUANTILE = 0.02, 0.1


@dataclass(frozen=True)
class Anchor:
    """Arrays, all float32: ``centre_F`` and ``scale_F`` standardise, ``whiten_FK`` turns into whitened directions,
    ``bank_NK`` holds the training prompts there as unit vectors and ``owner_N`` (int64) the domain of each.

    ``limit_D`` and ``spread_D`` are the quantile and the deviation of similarities over each domain's held-out training
    prompts; ``home_D`` is another quantile, from which on a prompt is one of the domain's own.
    """

    centre_F: np.ndarray
    scale_F: np.ndarray
    whiten_FK: np.ndarray
    bank_NK: np.ndarray
    owner_N: np.ndarray
    limit_D: np.ndarray
    spread_D: np.ndarray
    home_D: np.ndarray

    @property
    def domain_count(self) -> int:
        return len(self.limit_D)

    def directions(self, features_BF: np.ndarray) -> np.ndarray:
        """The prompts as unit vectors (B, K) in whitened space."""
        standard_BF = np.clip((features_BF - self.centre_F) / self.scale_F, -CLIP, CLIP)
        points_BK = standard_BF @ self.whiten_FK
        return points_BK / np.maximum(np.linalg.norm(points_BK, axis=1, keepdims=True), 1e-12)

    def similarity(self, directions_BK: np.ndarray, banked_B: np.ndarray | None = None) -> np.ndarray:
        """Mean cosine (B, D) with the nearest training prompts of each domain. ``banked_B`` says of prompts that are
        themselves in the bank which they are."""
        return similarity(directions_BK, self.bank_NK, self.owner_N, self.domain_count, banked_B)

    def logits(self, similarity_BD: np.ndarray) -> np.ndarray:
        """Gate logits (B, D): above zero for the nearest domain alone, and only within its limit."""
        rival_BD = np.stack(
            [np.delete(similarity_BD, d, axis=1).max(axis=1, initial=-1.0) for d in range(self.domain_count)], axis=1
        )
        return (similarity_BD - np.maximum(rival_BD, self.limit_D)) / self.spread_D


def fit_anchor(features_NF: np.ndarray, owner_N: Sequence[int] | np.ndarray, domain_count: int) -> Anchor:
    """The anchor of these training prompts. Raises DataError for a domain with fewer than ``FOLDS`` of them."""
    owner_N = np.asarray(owner_N, dtype=np.int64)
    counts_D = np.bincount(owner_N, minlength=domain_count)
    if (counts_D < FOLDS).any():
        raise DataError(f"training prompts by domain: {counts_D.tolist()}; the meta-router needs {FOLDS} of each")
    if not np.isfinite(features_NF).all():
        raise DataError("router states of training prompts are not finite; the base is broken, or overflows float32")
    # What held-out prompts reach in their own domain: each judged by an anchor that was fitted without it.
    fold_N = _fold_in_domain(owner_N)
    held_N = np.empty(len(owner_N))
    for fold in range(FOLDS):
        part = _fit(features_NF[fold_N != fold], owner_N[fold_N != fold], [np.zeros(1)] * domain_count)
        similarity_BD = part.similarity(part.directions(features_NF[fold_N == fold]))
        held_N[fold_N == fold] = similarity_BD[np.arange(len(similarity_BD)), owner_N[fold_N == fold]]
    return _fit(features_NF, owner_N, [held_N[owner_N == d] for d in range(domain_count)])


def _fit(features_NF: np.ndarray, owner_N: np.ndarray, reached: Sequence[np.ndarray]) -> Anchor:
    """``reached`` are the similarities that held-out prompts of each domain have with it."""
    centre_F, scale_F = features_NF.mean(axis=0), features_NF.std(axis=0)
    # A feature that hardly varies tells nothing: do not blow its rounding noise up.
    scale_F = np.maximum(scale_F, 1e-3 * np.median(scale_F) + 1e-12)
    standard_NF = np.clip((features_NF - centre_F) / scale_F, -CLIP, CLIP)
    mean_DF = np.stack([standard_NF[owner_N == d].mean(axis=0) for d in range(len(reached))])
    within_NF = standard_NF - mean_DF[owner_N]
    _, singular, directions = np.linalg.svd(within_NF, full_matrices=False)
    variance = singular**2 / len(within_NF)
    kept = min(DIRECTIONS, int((variance > 1e-9 * variance[0]).sum())) if variance[0] > 0 else 1
    equal = variance.sum() / features_NF.shape[1]
    spread_K = (1 - SHRINKAGE) * variance[:kept] + SHRINKAGE * equal + 1e-12
    quantiles = np.array([np.quantile(own, (FOREIGN_QUANTILE, HOME_QUANTILE)) for own in reached], dtype=np.float32)
    unplaced = Anchor(
        centre_F=centre_F.astype(np.float32),
        scale_F=scale_F.astype(np.float32),
        whiten_FK=(directions[:kept].T / np.sqrt(spread_K)).astype(np.float32),
        bank_NK=np.empty((0, kept), dtype=np.float32),
        owner_N=owner_N,
        limit_D=quantiles[:, 0],
        spread_D=np.array([own.std() + 1e-6 for own in reached], dtype=np.float32),
        home_D=quantiles[:, 1],
    )
    bank_NK = unplaced.directions(features_NF.astype(np.float32)).astype(np.float32)
    return Anchor(**{**unplaced.__dict__, "bank_NK": bank_NK})


def similarity(
    directions_BK: np.ndarray,
    bank_NK: np.ndarray,
    group_N: np.ndarray,
    groups: int,
    banked_B: np.ndarray | None = None,
) -> np.ndarray:
    """Mean cosine (B, groups) with the nearest prompts of each group of a bank. ``banked_B`` says of prompts that are
    themselves in the bank which they are, so that none counts as its own neighbour."""
    size = max(1, COSINES // max(len(bank_NK), 1))
    found = np.empty((len(directions_BK), groups), dtype=np.result_type(directions_BK, bank_NK))
    for at in range(0, len(directions_BK), size):
        cosine_BN = directions_BK[at : at + size] @ bank_NK.T
        if banked_B is not None:
            own_B = banked_B[at : at + size]
            cosine_BN[np.arange(len(own_B)), own_B] = -1.0
        for group in range(groups):
            found[at : at + size, group] = _nearest(cosine_BN[:, group_N == group])
    return found


def _nearest(cosine_BN: np.ndarray) -> np.ndarray:
    """Mean of the ``NEIGHBOURS`` largest of each row."""
    count = min(NEIGHBOURS, cosine_BN.shape[1])
    return np.partition(cosine_BN, -count, axis=1)[:, -count:].mean(axis=1)


def _fold_in_domain(owner_N: np.ndarray) -> np.ndarray:
    """A fold for each prompt, the prompts of every domain dealt in turns."""
    fold_N = np.empty(len(owner_N), dtype=np.int64)
    for d in np.unique(owner_N):
        fold_N[owner_N == d] = np.arange((owner_N == d).sum()) % FOLDS
    return fold_N
