"""How a sweep's work is cut into batches: a pure function, so that its cost can be reasoned about and tested.

A batch costs its padded tokens times (one base pass + one pass of adapters per domain that any of its rows uses).
So a good batch holds rows of one length and few distinct domains.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# Rows share a batch only with rows at most this much shorter than the longest: padding wastes under a fifth.
LENGTH_BAND = 1.25
# Cost of one active domain (about two fused stacks) over the cost of a base pass; DESIGN's mixture cost table has
# nine fused stacks at 0.8 to 1.0 of it. It only orders batches, so a rough value does.
DOMAIN_COST = 0.2

GateWeights = tuple[float, ...]  # one for each domain, in the bundle's order
AnswerRequest = tuple[int, GateWeights]  # which prompt is answered, and under what


@dataclass(frozen=True)
class Batch:
    """(row index, mask) pairs to score in one call; ``length`` is the token length its rows are padded to."""

    requests: tuple[tuple[int, int], ...]
    length: int

    @property
    def padded_tokens(self) -> int:
        return len(self.requests) * self.length

    @property
    def active_mask(self) -> int:
        """The domains that at least one row uses, which the whole batch pays for."""
        return functools.reduce(operator.or_, (mask for _, mask in self.requests))

    @property
    def cost(self) -> float:
        """Estimated cost in base-pass tokens."""
        return self.padded_tokens * (1 + DOMAIN_COST * self.active_mask.bit_count())


def plan_work(
    requests: np.ndarray | Sequence[tuple[int, int]], lengths: np.ndarray | Sequence[int], batch_tokens: int
) -> list[Batch]:
    """Cut (row index, mask) requests (N, 2) into batches of at most ``batch_tokens`` padded tokens, costliest first.

    ``lengths`` are token lengths by row index. Requests are taken band of lengths by band of lengths, inside one by
    mask in Gray-code order: neighbours differ in one domain, so a batch that spans several masks spans few domains.
    Costliest first keeps the last evaluators from waiting on one long batch. A row longer than ``batch_tokens`` is
    a batch of its own. The plan depends on the set of requests alone, not on their order.
    """
    row_N, mask_N = np.asarray(requests, dtype=np.int64).reshape(-1, 2).T
    length_N = np.asarray(lengths, dtype=np.int64)[row_N]
    band_N = _length_bands(length_N)
    order_N = np.lexsort((row_N, -length_N, _gray_rank(mask_N), band_N))
    row_N, mask_N, length_N, band_N = row_N[order_N], mask_N[order_N], length_N[order_N], band_N[order_N]
    again_N = (np.diff(row_N, prepend=-1) == 0) & (np.diff(mask_N, prepend=-1) == 0)
    asked = list(zip(row_N[~again_N].tolist(), mask_N[~again_N].tolist(), strict=True))
    measures = zip(length_N[~again_N].tolist(), band_N[~again_N].tolist(), strict=True)
    batches: list[Batch] = []
    start, longest, current = 0, 0, -1
    for place, (length, band) in enumerate(measures):
        padded = max(longest, length)
        if band != current or padded * (place - start + 1) > batch_tokens:
            if place > start:
                batches.append(Batch(tuple(asked[start:place]), longest))
            start, padded, current = place, length, band
        longest = padded
    if asked:
        batches.append(Batch(tuple(asked[start:]), longest))
    return sorted(batches, key=lambda batch: (-batch.cost, batch.requests))


def plan_answers(
    requests: Iterable[AnswerRequest], lengths: Sequence[int], batch_size: int
) -> list[tuple[AnswerRequest, ...]]:
    """Cut requests into batches to generate together, longest prompts first; ``lengths`` are those of all prompts.

    A batch goes on until its last answer ends, and the base alone seldom ends one: so the base's rows are kept apart
    from those with domains, which then also pay for no stack.
    """

    def fires(request: AnswerRequest) -> bool:
        return any(request[1])

    ordered = sorted(set(requests), key=lambda request: (fires(request), -lengths[request[0]], request))
    groups = [list(group) for _, group in itertools.groupby(ordered, key=fires)]
    return [tuple(group[at : at + batch_size]) for group in groups for at in range(0, len(group), batch_size)]


def _gray_rank(mask_N: np.ndarray) -> np.ndarray:
    """Place of each mask in the binary-reflected Gray code."""
    rank_N = mask_N.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        rank_N ^= rank_N >> shift
    return rank_N


def _length_bands(length_N: np.ndarray) -> np.ndarray:
    """Which band each length is in, from 0, the longest: one begins where the last one's longest is too long."""
    length_K, of_N = np.unique(length_N, return_inverse=True)
    band_K = np.zeros(len(length_K), dtype=np.int64)
    band, longest = -1, np.inf
    for place in reversed(range(len(length_K))):
        if length_K[place] * LENGTH_BAND < longest:
            band, longest = band + 1, length_K[place]
        band_K[place] = band
    return band_K[of_N]
