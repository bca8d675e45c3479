"""May a new bundle become champion? Decided by what is *served*: the same rows, the champion's routed loss against the
new bundle's, row by row.

That old stacks did not move says nothing about what their users get: a new meta-router may send prompts elsewhere. So
a bundle is promoted only if no kind of row got worse, by more than chance and by more than a tolerance. Both losses
are of sweep rows that the meta-router which is judged never saw.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bs_cluster.estimates import Estimate, paired_difference
from bs_cluster.records import CHALLENGER, CHAMPION, ModeLosses, Promotion, Record, RowLoss

LOSSES = "losses.parquet"
GATE = "gate:"  # before a domain, the name of its column there
SERVED = "routed"  # the mode that is what people get
MIXED, FOREIGN = "all mixed", "all foreign"  # rows of no single domain, of none: no domain can have such a name
TOLERANCE = 0.01  # nats per completion token
HAND, ROLLBACK = "hand", "rollback"

Policy = Literal["guarded", "always", "manual"]


@dataclass(frozen=True)
class GroupChange(Record):
    """What a group of rows (a domain's, the mixed, the foreign) loses more than before, in nats per completion token,
    below zero better. ``difference`` is None where there is no finite interval: one row, or a loss that is none."""

    group: str
    difference: Estimate | None
    rows: int
    worse: bool


@dataclass(frozen=True)
class ServedChange(Record):
    """Serving ``bundle`` instead of ``against``, on the ``shared`` rows of two sweeps of ``rows`` and ``former_rows``.
    ``missing`` names the groups of the former of which no row is shared."""

    bundle: int
    against: int
    shared: int
    rows: int
    former_rows: int
    tolerance: float
    groups: tuple[GroupChange, ...]
    missing: tuple[str, ...]

    @property
    def worse(self) -> tuple[GroupChange, ...]:
        return tuple(change for change in self.groups if change.worse)


@dataclass(frozen=True)
class Decision(Record):
    """``alias`` is what the bundle becomes; ``reason`` is what people are told."""

    alias: str
    reason: str


@dataclass(frozen=True)
class Standing(Record):
    """``champion`` is served; ``former`` were before, newest last; ``challenger`` came after and was not let in."""

    champion: Promotion | None
    former: tuple[Promotion, ...]
    challenger: Promotion | None


def group_of(owner: str) -> str:
    """A row's group by its owner: a domain, or a kind of rows that no single one owns."""
    return MIXED if owner.startswith("mixed:") else FOREIGN if ":" in owner else owner


def served_change(
    bundle: int, losses: ModeLosses, against: int, former: ModeLosses, tolerance: float = TOLERANCE
) -> ServedChange:
    """Compares what is served on the rows that both sweeps measured: the same id, cut to as many tokens.

    A group is worse where the whole 95 % interval lies above zero and its mean above ``tolerance``, or where a row
    that had a loss has none any more.
    """
    before = {
        row: RowLoss(nll, tokens)
        for row, tokens, nll in zip(former.row_ids, former.tokens, former.nll.get(SERVED, ()), strict=False)
        if nll is not None
    }
    served = losses.nll.get(SERVED) or [None] * len(losses.row_ids)
    pairs: dict[str, list[tuple[RowLoss, RowLoss | None]]] = {}
    for row, owner, tokens, nll in zip(losses.row_ids, losses.owners, losses.tokens, served, strict=True):
        if row in before and before[row].tokens == tokens:
            now = None if nll is None else RowLoss(nll, tokens)
            pairs.setdefault(group_of(owner), []).append((before[row], now))
    return ServedChange(
        bundle=bundle,
        against=against,
        shared=sum(map(len, pairs.values())),
        rows=len(losses.row_ids),
        former_rows=len(former.row_ids),
        tolerance=tolerance,
        groups=tuple(_change(group, rows, tolerance) for group, rows in pairs.items()),
        missing=tuple(group for group in dict.fromkeys(map(group_of, former.owners)) if group not in pairs),
    )


def _change(group: str, rows: Sequence[tuple[RowLoss, RowLoss | None]], tolerance: float) -> GroupChange:
    now = [after for _, after in rows if after is not None]
    if len(now) < len(rows):
        return GroupChange(group, None, len(rows), worse=True)
    found = paired_difference(now, [before for before, _ in rows])
    finite = len(rows) > 1 and found.mean == found.mean
    worse = found.low > 0 and found.mean > tolerance
    return GroupChange(group, found if finite else None, len(rows), worse)


def decide(policy: Policy, change: ServedChange | None, outdated: int | None = None) -> Decision:
    """``change`` is None where there is no champion to compare with: then the bundle is it, unless a person says so.
    ``outdated`` is the champion's number where it holds a retired stack: no harm is a reason to go on serving that."""
    if policy == "manual":
        return Decision(CHALLENGER, "promotion is by hand: bs_cluster bundles promote")
    if outdated is not None:
        worse = ", ".join(item.group for item in change.worse) if change else ""
        told = f"; served worse than by it: {worse}" if worse else ""
        return Decision(CHAMPION, f"bundle {outdated} holds what was retired{told}")
    if change is None:
        return Decision(CHAMPION, "the first bundle")
    if policy == "always":
        return Decision(CHAMPION, "every bundle is promoted")
    rival, slack = f"bundle {change.against}", f"by more than {change.tolerance:g} nats"
    if change.worse:
        told = ", ".join(f"{item.group} {item.difference or 'has a row without a loss'}" for item in change.worse)
        return Decision(CHALLENGER, f"served worse than by {rival} {slack}: {told}")
    if change.missing or not change.shared:
        groups = ", ".join(change.missing) or "any group"
        return Decision(CHALLENGER, f"cannot be compared with {rival}: no row of {groups} was measured for both")
    told = f"no group is served worse than by {rival} {slack}, on {change.shared} rows that both measured"
    return Decision(CHAMPION, told)


def standing(
    promotions: Sequence[Promotion], outdated: Collection[int] = (), withdrawn: Collection[int] = ()
) -> Standing:
    """What a history of promotions comes to. A rollback takes off every champion after the one that it names.

    ``outdated`` are the numbers of bundles with a retired stack: none of them is challenger or can be rolled back to,
    but the one that is served goes on until another follows. ``withdrawn`` ones are not served at all any more.
    """
    champions: list[Promotion] = []
    challenger = None
    for promotion in promotions:
        if promotion.alias == CHALLENGER:
            challenger = promotion
            continue
        challenger = None
        while promotion.by == ROLLBACK and champions and champions[-1].bundle != promotion.bundle:
            champions.pop()
        if not champions or champions[-1].bundle != promotion.bundle:
            champions.append(promotion)
    champions = [promotion for promotion in champions if promotion.bundle not in withdrawn]
    former = tuple(promotion for promotion in champions[:-1] if promotion.bundle not in outdated)
    if challenger is not None and challenger.bundle in outdated:
        challenger = None
    return Standing(champions[-1] if champions else None, former, challenger)


def write_losses(losses: ModeLosses) -> bytes:
    """Parquet: ``row_id``, ``owner``, ``tokens``, the summed loss in nats under each mode, and as ``gate:DOMAIN`` the
    gate weight of each domain."""
    columns = {"row_id": losses.row_ids, "owner": losses.owners, "tokens": losses.tokens}
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays |= {mode: pa.array(nll, pa.float64()) for mode, nll in losses.nll.items()}
    arrays |= {GATE + domain: pa.array(gates, pa.float64()) for domain, gates in losses.gates.items()}
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays), sink)
    return sink.getvalue()


def read_losses(data: bytes) -> ModeLosses:
    columns = pq.read_table(io.BytesIO(data)).to_pydict()
    rows, owners, tokens = (tuple(columns.pop(name)) for name in ("row_id", "owner", "tokens"))
    gates = {name.removeprefix(GATE): tuple(columns.pop(name)) for name in list(columns) if name.startswith(GATE)}
    return ModeLosses(rows, owners, tokens, {mode: tuple(nll) for mode, nll in columns.items()}, gates)
