"""How the meta-router does on rows that it never saw, against everything simpler. Losses are nats per completion token.

The oracle takes the best measured combination of each row *in hindsight*: what nothing that has to decide before the
answer could do with whole domains. Gate weights between may be better still. Differences are paired by row with
bootstrap intervals (``estimates``).

Shapes: B rows, C combinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bs_cluster.config.schema import RouterSection
from bs_cluster.errors import DataError
from bs_cluster.estimates import Estimate, estimate
from bs_cluster.records import Record
from bs_cluster.router.fit import CrossFit, Served
from bs_cluster.sweep.combinations import full_mask
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.owners import kind_of

# What the meta-router is compared with. ``label`` means something on rows of a domain only.
RIVALS = ("label", "anchor", "best_single", "all_on", "base", "oracle")
# A choice within this many nats per token of the oracle is no mistake.
TOLERANCE = 0.01


@dataclass(frozen=True)
class RowsRouting(Record):
    """Routing on one group of rows. ``loss`` is by policy (``routed`` and ``RIVALS``), ``routed_minus`` the paired
    difference to each rival: below zero the meta-router is better. ``accuracy`` is the share of rows that its gates
    served as well as the oracle; ``stayed_out`` the share that was left to the base."""

    rows: int
    tokens: int
    loss: dict[str, float]
    routed_minus: dict[str, Estimate]
    accuracy: float
    stayed_out: float

    def regret(self, policy: str = "routed") -> float | None:
        """Loss above the oracle's; None for a policy that does not apply."""
        return None if policy not in self.loss else self.loss[policy] - self.loss["oracle"]


@dataclass(frozen=True)
class RoutingReport(Record):
    """``kind`` and ``served`` (``network``, or of an anchored router ``learned`` or ``anchor``) describe the router in
    the bundle, which learned from all rows; ``shrinkage``, ``everywhere`` and ``change`` (cross-validated loss less the
    anchor's) are why. ``kinds`` holds ``domain``, ``mixed`` and ``foreign`` rows, ``owners`` each owner's, every row
    judged by one of ``folds`` routers that never saw it. ``best_single`` names that policy's domain for each kind.
    """

    kind: str
    served: str
    shrinkage: float | None
    everywhere: bool
    change: Estimate | None
    folds: int
    kinds: dict[str, RowsRouting]
    owners: dict[str, RowsRouting]
    best_single: dict[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what is served and why."""
        if self.change is None:
            return ("Served: the paper's network on targets worked out of the outcomes.",)
        told = f"cross-validated loss less the anchor's: {self.change}"
        if self.served == "anchor":
            return (f"Served: the anchor, a classifier of prompts; learning from outcomes did not beat it ({told}).",)
        where = "for every prompt" if self.everywhere else "for prompts that lie within no domain's limit"
        return (f"Served: gates learned from outcomes, {where}, shrunk by {self.shrinkage:g} to the anchor ({told}).",)


def measured_nll(table: OutcomeTable, masks_B: np.ndarray) -> np.ndarray:
    """Summed loss (B,) of each row under its own combination. Raises DataError where one was not measured."""
    nll_B = table.nll(np.arange(len(masks_B)), masks_B)
    if np.isnan(nll_B).any():
        row = int(np.flatnonzero(np.isnan(nll_B))[0])
        raise DataError(f"row {table.row_ids[row]!r} was not measured under mask {int(masks_B[row])}; measure it first")
    return nll_B


def policy_nll(
    table: OutcomeTable, fitted: CrossFit, routed_B: np.ndarray, anchor_B: np.ndarray
) -> dict[str, np.ndarray]:
    """Summed losses (B,) of every policy, NaN where it does not apply to a row; ``routed_B`` and ``anchor_B`` are those
    under the gates of ``fitted``."""
    own = {domain: 1 << d for d, domain in enumerate(table.domains)}
    labelled_B = np.array([owner in own for owner in table.owners])
    label_B = measured_nll(table, np.array([own.get(owner, 0) for owner in table.owners]))
    everything = np.full(len(table.owners), full_mask(len(table.domains)))
    return {
        "routed": routed_B,
        "label": np.where(labelled_B, label_B, np.nan),
        "anchor": anchor_B,
        "best_single": measured_nll(table, fitted.best_single_B),
        "all_on": measured_nll(table, everything),
        "base": measured_nll(table, np.zeros_like(everything)),
        "oracle": table.best_nll(),
    }


@dataclass(frozen=True)
class Judged:
    """What was decided for rows by what never saw them, and the summed losses (B,) of every policy on them."""

    row_ids: tuple[str, ...]
    owners: tuple[str, ...]
    domains: tuple[str, ...]
    tokens_B: np.ndarray
    fitted: CrossFit
    nll: dict[str, np.ndarray]

    @classmethod
    def of(cls, table: OutcomeTable, fitted: CrossFit, routed_B: np.ndarray, anchor_B: np.ndarray) -> Judged:
        """Of the rows of ``table``, as ``policy_nll`` takes them."""
        nll = policy_nll(table, fitted, routed_B, anchor_B)
        return cls(table.row_ids, table.owners, table.domains, table.tokens_B, fitted, nll)

    @classmethod
    def together(cls, parts: Sequence[Judged]) -> Judged:
        """The rows of all parts, one after another."""
        return cls(
            tuple(row_id for part in parts for row_id in part.row_ids),
            tuple(owner for part in parts for owner in part.owners),
            parts[0].domains,
            np.concatenate([part.tokens_B for part in parts]),
            CrossFit(*map(np.concatenate, zip(*(part.fitted for part in parts), strict=True))),
            {policy: np.concatenate([part.nll[policy] for part in parts]) for policy in parts[0].nll},
        )

    @property
    def kinds(self) -> list[str]:
        return [kind_of(owner, self.domains) for owner in self.owners]


def rows_of(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of each name, in the order of first occurrence."""
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    number_B = np.fromiter((number[name] for name in names), np.int64, len(names))
    return {name: np.flatnonzero(number_B == place) for name, place in number.items()}


def routing_groups(judged: Judged) -> tuple[dict[str, RowsRouting], dict[str, RowsRouting]]:
    """Routing by kind of row, and by owner, in the order of first occurrence."""

    def group(names: Sequence[str]) -> dict[str, RowsRouting]:
        return {
            name: _rows(judged.nll, judged.tokens_B, judged.fitted.routed_BD, rows)
            for name, rows in rows_of(names).items()
        }

    return group(judged.kinds), group(judged.owners)


def routing_report(settings: RouterSection, judged: Judged, served: Served) -> RoutingReport:
    """The whole report."""
    kinds, owners = routing_groups(judged)
    learned = None if served.choice is None else served.choice.learned
    return RoutingReport(
        kind=settings.kind,
        served=settings.kind if settings.kind == "network" else "anchor" if learned is None else "learned",
        shrinkage=None if learned is None else learned.shrinkage,
        everywhere=learned is not None and learned.everywhere,
        change=None if served.choice is None else served.choice.change,
        folds=settings.folds,
        kinds=kinds,
        owners=owners,
        best_single=best_single_names(judged),
    )


def best_single_names(judged: Judged) -> dict[str, str]:
    """The domain behind ``best_single`` for each kind of row, in most of the folds."""
    names = {}
    for kind, rows in rows_of(judged.kinds).items():
        masks, counts = np.unique(judged.fitted.best_single_B[rows], return_counts=True)
        names[kind] = judged.domains[int(masks[counts.argmax()]).bit_length() - 1]
    return names


def _rows(nll: Mapping[str, np.ndarray], tokens_B: np.ndarray, gates_BD: np.ndarray, rows: np.ndarray) -> RowsRouting:
    own = {policy: nll_B[rows] for policy, nll_B in nll.items() if np.isfinite(nll_B[rows]).all()}
    tokens = tokens_B[rows]
    slack_B = (own["routed"] - own["oracle"]) / tokens
    return RowsRouting(
        rows=len(rows),
        tokens=int(tokens.sum()),
        loss={policy: float(nll_B.sum() / tokens.sum()) for policy, nll_B in own.items()},
        routed_minus={rival: estimate(own["routed"] - own[rival], tokens) for rival in RIVALS if rival in own},
        accuracy=float((slack_B <= TOLERANCE).mean()),
        stayed_out=float((gates_BD[rows] == 0).all(axis=1).mean()),
    )
