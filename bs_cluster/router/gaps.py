"""Which prompts no domain serves well, and which of these belong together: the seeds of domains to come.

Two things speak of a gap: what is left of the base's loss under the best combination of domains, and that a prompt lies
beyond every domain's limit (``anchor``). Neither is enough. A far prompt may be served well by what domains have in
common, and where a domain's own prompts lie far apart its limit takes in strangers. So a far prompt is poor if more of
its loss is left than of the middle one of the domains' own rows, a near one only if more is left than of nine in ten.

Poor prompts are linked while two groups are on average as like each other as two training prompts of one domain are in
the median. All closed form, no seed.

Shapes: B rows, N poor rows, F features, K whitened directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bs_cluster.router.anchor import Anchor

# Of the domains' own rows: how much of the base's loss is left of the middle one, and of the one that nine in ten beat.
MIDDLE, POOREST = 0.5, 0.9
WORTH = 0.1  # nats per token that a domain of its own promises, at least
FEWEST = 5  # rows of a group that is offered
PAIRED = 250  # training prompts of each domain whose likeness is looked at


@dataclass(frozen=True)
class Standard:
    """The share of the base's loss that is left of the domains' own rows: of the middle one, and of a poor one."""

    middle: float
    poorest: float

    @classmethod
    def of(cls, base_B: np.ndarray, best_B: np.ndarray) -> Standard:
        """From mean losses of the domains' own rows under the base and as well as they can be served."""
        return cls(*np.quantile(best_B / np.maximum(base_B, 1e-12), [MIDDLE, POOREST]).tolist())

    def promise(self, base_B: np.ndarray, best_B: np.ndarray) -> np.ndarray:
        """Nats per token (B,) that rows would gain if they were served as the middle row of a domain is."""
        return best_B - self.middle * base_B

    def poor(self, base_B: np.ndarray, best_B: np.ndarray, beyond_B: np.ndarray) -> np.ndarray:
        """Whether these rows are served poorly (B,), given which of them lie beyond every domain's limit."""
        left_B = best_B / np.maximum(base_B, 1e-12)
        return (self.promise(base_B, best_B) > WORTH) & (beyond_B | (left_B > self.poorest))


def beyond_limits(anchor: Anchor, directions_BK: np.ndarray) -> np.ndarray:
    """Which prompts (B,) lie beyond the limit of every domain."""
    return (anchor.similarity(directions_BK) - anchor.limit_D).max(axis=1) < 0


def likeness(anchor: Anchor) -> float:
    """The median cosine of two training prompts of one domain."""
    found = []
    for d in range(anchor.domain_count):
        own = np.flatnonzero(anchor.owner_N == d)
        bank = anchor.bank_NK[own[np.linspace(0, len(own) - 1, min(PAIRED, len(own))).astype(int)]]
        found.append((bank @ bank.T)[np.triu_indices(len(bank), 1)])
    return float(np.median(np.concatenate(found)))


def groups(directions_NK: np.ndarray, least: float) -> list[np.ndarray]:
    """Rows that belong together, ``FEWEST`` or more of them, those nearest to their centre first.

    Average linkage on cosines, up to ``least``: two groups that are each other's nearest are joined, whatever the
    order, since no joining brings another group nearer (Murtagh, 1983).
    """
    cosine_NN = (directions_NK @ directions_NK.T).astype(np.float64)
    np.fill_diagonal(cosine_NN, -np.inf)
    held = {row: [row] for row in range(len(cosine_NN))}
    whole: list[list[int]] = []
    chain: list[int] = []
    while held:
        chain = chain or [next(iter(held))]
        near_N = cosine_NN[chain[-1]]
        next_one = int(near_N.argmax())
        if len(chain) > 1 and near_N[chain[-2]] >= near_N[next_one]:
            _join(cosine_NN, held, chain.pop(), chain.pop())
        elif near_N[next_one] >= least:
            chain.append(next_one)
        else:  # nothing is near enough to it, nor will be
            alone = chain.pop()
            cosine_NN[:, alone] = -np.inf
            whole.append(held.pop(alone))
    return [_from_the_centre(directions_NK, np.array(rows)) for rows in sorted(whole, key=min) if len(rows) >= FEWEST]


def _join(cosine_NN: np.ndarray, held: dict[int, list[int]], kept: int, gone: int) -> None:
    """``kept`` takes the rows of ``gone`` in."""
    sizes = len(held[kept]), len(held[gone])
    mean_N = (sizes[0] * cosine_NN[kept] + sizes[1] * cosine_NN[gone]) / sum(sizes)
    cosine_NN[kept], cosine_NN[:, kept], cosine_NN[:, gone] = mean_N, mean_N, -np.inf
    cosine_NN[kept, kept] = -np.inf
    held[kept] += held.pop(gone)


def _from_the_centre(directions_NK: np.ndarray, rows: np.ndarray) -> np.ndarray:
    centre_K = directions_NK[rows].mean(axis=0)
    return rows[np.lexsort((rows, -(directions_NK[rows] @ centre_K)))]
