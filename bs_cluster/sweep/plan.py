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

# Rows share a batch only with rows at most this much shorter than the longest: padding wastes under a fifth.
LENGTH_BAND = 1.25
# Cost of one active domain (about two fused stacks) over the cost of a base pass; DESIGN's mixture cost table has
# nine fused stacks at 0.8 to 1.0 of it. It only orders batches, so a rough value does.
DOMAIN_COST = 0.2


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


def plan_work(requests: Iterable[tuple[int, int]], lengths: Sequence[int], batch_tokens: int) -> list[Batch]:
    """Cut (row index, mask) requests into batches of at most ``batch_tokens`` padded tokens, costliest first.

    ``lengths`` are token lengths by row index. Requests are taken band of lengths by band of lengths, inside one by
    mask in Gray-code order: neighbours differ in one domain, so a batch that spans several masks spans few domains.
    Costliest first keeps the last evaluators from waiting on one long batch. A row longer than ``batch_tokens`` is
    a batch of its own. The plan depends on the set of requests alone, not on their order.
    """
    batches: list[Batch] = []
    for band in _length_bands(sorted(set(requests), key=lambda request: (-lengths[request[0]], request)), lengths):
        current: list[tuple[int, int]] = []
        longest = 0
        for request in sorted(band, key=lambda request: (_gray_rank(request[1]), -lengths[request[0]], request[0])):
            padded = max(longest, lengths[request[0]])
            if current and padded * (len(current) + 1) > batch_tokens:
                batches.append(Batch(tuple(current), longest))
                current, padded = [], lengths[request[0]]
            current.append(request)
            longest = padded
        batches.append(Batch(tuple(current), longest))
    return sorted(batches, key=lambda batch: (-batch.cost, batch.requests))


def plan_answers(
    requests: Iterable[tuple[int, int]], lengths: Sequence[int], batch_size: int
) -> list[tuple[tuple[int, int], ...]]:
    """Cut (row index, mask) requests into batches to generate together, longest prompts first.

    A batch goes on until its last answer ends, and the base alone seldom ends one: so the base's rows are kept apart
    from those with domains, which then also pay for no stack.
    """
    ordered = sorted(set(requests), key=lambda request: (request[1] > 0, -lengths[request[0]], request))
    groups = [list(group) for _, group in itertools.groupby(ordered, key=lambda request: request[1] > 0)]
    return [tuple(group[at : at + batch_size]) for group in groups for at in range(0, len(group), batch_size)]


def _gray_rank(mask: int) -> int:
    """Place of ``mask`` in the binary-reflected Gray code."""
    rank = 0
    while mask:
        rank ^= mask
        mask >>= 1
    return rank


def _length_bands(longest_first: list[tuple[int, int]], lengths: Sequence[int]) -> Iterable[list[tuple[int, int]]]:
    band: list[tuple[int, int]] = []
    for request in longest_first:
        if band and lengths[request[0]] * LENGTH_BAND < lengths[band[0][0]]:
            yield band
            band = []
        band.append(request)
    if band:
        yield band
