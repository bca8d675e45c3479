"""What ``benchmarks.psn`` found of a campaign on a random base, and how it is told.

Losses are in nats per completion token. Differences are paired by row, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.table import Table
from bs_cluster.estimates import Estimate, estimate
from bs_cluster.records import Record

POOLED = "pooled"


@dataclass(frozen=True)
class Dense(Record):
    """A model from scratch: its parameters, width, rate and seconds; ``nll[domain]`` is each row's summed loss, for a
    domain's own model of that domain alone."""

    parameters: int
    hidden: int
    rate: float
    seconds: float
    nll: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Blocked(Record):
    """All domains' blocks: parameters of the first's, their width, the columns that each writes into, rate, seconds of
    all of them; by domain each row's summed loss under its own blocks and under all."""

    parameters: int
    hidden: int
    columns: int
    rate: float
    seconds: float
    own: dict[str, tuple[float, ...]]
    together: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Found(Record):
    """A campaign's figures. By domain: each sweep row's completion ``tokens``, its summed loss with the first 0, 1, 2 …
    stacks (``by_stacks``), and what the campaign recorded (``recorded[domain][mode]``). ``other_bits`` counts rows
    whose loss under their domain's own stacks changed in any bit once later domains' lay beside them. ``router`` is the
    report's. ``rates`` and ``block_rates`` are losses on validation rows; ``dense`` is by domain, and ``pooled``.
    ``confined`` is whether stacks kept out of earlier domains' directions."""

    campaign: str
    seed: int
    base: str
    machine: str
    domains: tuple[str, ...]
    parameters: dict[str, int]
    tokens: dict[str, tuple[int, ...]]
    by_stacks: dict[str, tuple[tuple[float, ...], ...]]
    recorded: dict[str, dict[str, tuple[float, ...]]]
    other_bits: int
    drift: float
    router: dict[str, float]
    rates: dict[str, float] = field(default_factory=dict)
    dense: dict[str, Dense] = field(default_factory=dict)
    confined: bool = True
    block_rates: dict[str, float] = field(default_factory=dict)
    blocks: Blocked | None = None

    def with_stacks(self, count: int) -> dict[str, tuple[float, ...]]:
        """Each domain's rows under so many of its first stacks, or all that it has."""
        return {domain: curve[min(count, len(curve) - 1)] for domain, curve in self.by_stacks.items()}

    @property
    def depth(self) -> int:
        """Stacks of the domain that has most."""
        return max(map(len, self.by_stacks.values())) - 1

    @property
    def own(self) -> dict[str, tuple[float, ...]]:
        return self.with_stacks(self.depth)

    @property
    def alone(self) -> dict[str, tuple[float, ...]]:
        """Each domain's rows under a dense model of it."""
        return {domain: self.dense[domain].nll[domain] for domain in self.domains}

    def mode(self, name: str) -> dict[str, tuple[float, ...]]:
        """What the campaign itself recorded."""
        return {domain: self.recorded[domain][name] for domain in self.domains}


def read(file: Path) -> list[Found]:
    return [Found.from_dict(one) for one in json.loads(file.read_text()).values()] if file.exists() else []


def table(found: Found) -> Table:
    """A row a domain."""
    depth = max(len(curve) for curve in found.by_stacks.values())
    columns = ("domain", "rows", "base", *(f"{n} stacks" if n > 1 else "1 stack" for n in range(1, depth)))
    rows = []
    for domain in found.domains:
        tokens_B = np.array(found.tokens[domain], dtype=float)
        curve = [_mean(nll, tokens_B) for nll in found.by_stacks[domain]]
        dense = [_mean(found.dense[name].nll[domain], tokens_B) for name in (domain, POOLED)]
        assert found.blocks is not None
        dense += [_mean(nll[domain], tokens_B) for nll in (found.blocks.own, found.blocks.together)]
        last = [_mean(found.recorded[domain][mode], tokens_B) for mode in ("routed", "ungated")]
        told = [f"{x:.3f}" for x in curve] + [""] * (depth - len(curve)) + [f"{x:.3f}" for x in (*dense, *last)]
        rows.append((domain, len(tokens_B), *told))
    note = f"{found.base}, seed {found.seed}, nats per completion token, on {found.machine}."
    instead = ("dense", POOLED, "blocks", "all blocks")
    return Table(f"Stacks on a random base: {found.campaign}", (*columns, *instead, "routed", "all on"), rows, note)


def lines(found: Found, without: Found | None) -> list[str]:
    """What a table by domain does not say, with intervals over the rows of all domains."""
    assert found.blocks is not None
    told = [
        f"stacks less a dense model a domain: {_difference(found, found.own, found.alone)}",
        f"stacks less one dense model on all of them: {_difference(found, found.own, found.dense[POOLED].nll)}",
        f"stacks less a domain's blocks: {_difference(found, found.own, found.blocks.own)}",
        f"all stacks less all blocks: {_difference(found, found.mode('ungated'), found.blocks.together)}",
        f"all blocks less the base: {_difference(found, found.blocks.together, found.with_stacks(0))}",
    ]
    for n in range(1, found.depth + 1):
        change = _difference(found, found.with_stacks(n), found.with_stacks(n - 1))
        told.append(f"{n} stack{'s' * (n > 1)} less {n - 1}: {change}")
    if without is not None:
        for mode in ("isolated", "routed", "ungated"):
            change = _difference(found, found.mode(mode), without.mode(mode))
            told.append(f"{mode}, null space on less off: {change}")
    told.append(f"rows with other bits once later domains lay beside them: {found.other_bits}; drift {found.drift}")
    for what, rates in (("dense", found.rates), ("blocks", found.block_rates)):
        tried = ", ".join(f"{rate} {loss:.3f}" for rate, loss in rates.items())
        told.append(f"rates of {what}, on validation rows of {found.domains[0]}: {tried}; the better one was taken")
    told.append("router: " + ", ".join(f"{key} {value:.3f}" for key, value in found.router.items()))
    return told


def boundary(found: Found, without: Found | None) -> str:
    """What the figures come to, in words that follow them."""
    assert found.blocks is not None
    own, on = found.own, found.mode("ungated")
    parts = [
        f"Under a domain's own stacks its rows are {_worded(found, own, found.alone)} than under a dense model of it "
        f"alone, and {_worded(found, own, found.dense[POOLED].nll)} than under one whose parameters took every "
        "domain's batches.",
        f"The last stack is {_worded(found, own, found.with_stacks(found.depth - 1))} than without it.",
        f"With all stacks on at once rows are {_worded(found, on, found.with_stacks(0))} than under the base.",
        f"A domain's own blocks are {_worded(found, found.blocks.own, own)} than its stacks, and all blocks at once "
        f"{_worded(found, found.blocks.together, on)} than all stacks at once, though each writes into "
        f"{found.blocks.columns} directions of its own.",
    ]
    if without is not None:
        alone, every = (_worded(found, found.mode(mode), without.mode(mode)) for mode in ("isolated", "ungated"))
        parts.append(f"The null space makes a domain's own stacks {alone}, and all at once {every}.")
    return " ".join(parts)


def _worded(found: Found, a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> str:
    change = _estimate(found, a, b)
    if change.low <= 0 <= change.high:
        return f"no better and no worse ({change})"
    ends = sorted(abs(end) for end in (change.low, change.high))
    return f"**{'better' if change.high < 0 else 'worse'}** by {abs(change.mean):.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def _difference(found: Found, a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> str:
    return str(_estimate(found, a, b))


def _estimate(found: Found, a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> Estimate:
    change_B = np.concatenate([np.subtract(a[domain], b[domain]) for domain in found.domains])
    return estimate(change_B, np.concatenate([found.tokens[domain] for domain in found.domains]).astype(float))


def _mean(nll: Sequence[float], tokens_B: np.ndarray) -> float:
    return float(np.sum(nll) / tokens_B.sum())
