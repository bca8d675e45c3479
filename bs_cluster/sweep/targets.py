"""What the meta-router should answer, worked out of the outcome table: one target in [0, 1] per row and domain.

Everything here is a pure function of the table. Shapes: B rows, D domains, C = 2^D combinations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bs_cluster.config.schema import SweepSection, TargetsSection
from bs_cluster.errors import ConfigError, DataError
from bs_cluster.sweep.combinations import all_masks, mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.search import search_kind


def check_targets(settings: TargetsSection, domains: Sequence[str], search: SweepSection) -> None:
    """Refuse, before anything is measured, targets that the search will not have the outcomes for."""
    if settings.kind == "shapley" and search_kind(search, len(domains)) != "exhaustive":
        raise ConfigError(
            [
                f"router.targets.kind: shapley needs all 2^{len(domains)} combinations of every row, the sweep of "
                f"{len(domains)} domains is adaptive; set sweep.search: exhaustive, or targets paper or softmin"
            ]
        )


def targets_BD(table: OutcomeTable, settings: TargetsSection) -> np.ndarray:
    """Targets of the configured kind, float64 (B, D) in [0, 1], domains in the table's order.

    Raises DataError when a row has no outcome at all, or (shapley) not every one.
    """
    if unmeasured := [table.row_ids[row] for row in range(len(table.row_ids)) if not table.losses(row)]:
        raise DataError(f"{len(unmeasured)} rows have no measured outcome, first {unmeasured[0]!r}; sweep them first")
    if settings.kind == "paper":
        return _paper_BD(table, settings)
    if settings.kind == "softmin":
        return _softmin_BD(table, settings.temperature)
    return _relative_worth_BD(shapley_BD(table), settings.parsimony)


def parsimonious_mask(losses: dict[int, float], parsimony: float) -> int:
    """The measured subset with the least ``loss + parsimony · size``; ties go to fewer domains.

    The exact form of the paper's greedy rule "add a domain while that gains more than the threshold": against any
    of its own subsets, the winner gains more than ``parsimony`` nats for each domain it adds; no larger set does.
    """
    return min(losses, key=lambda mask: (losses[mask] + parsimony * mask.bit_count(), mask.bit_count(), mask))


def _paper_BD(table: OutcomeTable, settings: TargetsSection) -> np.ndarray:
    """Membership of the parsimonious best subset; soft boost; blend with the label.

    The boost domain, where it is left out although adding it would lower the loss at all, gets ``boost_value``. An
    adaptive search may not have measured that extension: then there is no boost. A bundle without the boost domain
    ignores it, and a row that no domain owns has no label to blend in.
    """
    domain_count = len(table.domains)
    targets_BD = np.zeros((len(table.row_ids), domain_count))
    boost = table.domains.index(settings.boost_domain) if settings.boost_domain in table.domains else None
    for row in range(len(table.row_ids)):
        losses = table.losses(row)
        best = parsimonious_mask(losses, settings.parsimony)
        targets_BD[row] = mask_weights(best, domain_count)
        if boost is not None and not best >> boost & 1 and losses.get(best | 1 << boost, math.inf) < losses[best]:
            targets_BD[row, boost] = settings.boost_value
    label_BD = np.array([[float(owner == name) for name in table.domains] for owner in table.owners])
    blend_B1 = settings.prior_blend * label_BD.sum(axis=1, keepdims=True)
    return (1 - blend_B1) * targets_BD + blend_B1 * label_BD


def _softmin_BD(table: OutcomeTable, temperature: float) -> np.ndarray:
    """Expected membership when subsets are drawn with probability ∝ exp(−loss / temperature).

    The draw is over the subsets that were measured. A domain that changes nothing gets one half, not zero.
    """
    row_N, mask_N, nll_N = table.outcomes()
    odds_N = np.exp((table.best_nll()[row_N] - nll_N) / table.tokens_B[row_N] / temperature)
    odds_B = np.bincount(row_N, odds_N)
    fires = [np.bincount(row_N, odds_N * (mask_N >> d & 1)) / odds_B for d in range(len(table.domains))]
    # Rounding of the normalised sum may pass 1 by an ulp.
    return np.clip(np.stack(fires, axis=1), 0.0, 1.0)


def shapley_BD(table: OutcomeTable) -> np.ndarray:
    """Exact Shapley value of each domain for the gain ``loss(base) − loss(S)``, nats per token, float64 (B, D).

    A row's values add up to the gain of all domains together. Raises DataError when an outcome is missing.
    """
    domain_count = len(table.domains)
    masks = np.array(all_masks(domain_count))
    loss_BC = table.loss_BC(all_masks(domain_count))
    if missing := int(np.isnan(loss_BC).sum()):
        raise DataError(
            f"Shapley values need all {loss_BC.size} outcomes of {len(loss_BC)} rows, {missing} are not measured; "
            "set sweep.search: exhaustive, or targets paper or softmin"
        )
    size_C = np.array([mask.bit_count() for mask in all_masks(domain_count)])
    # A coalition of size n precedes the domain in n!(D-n-1)! of the D! orders of arrival.
    order_share = np.array([1 / (domain_count * math.comb(domain_count - 1, n)) for n in range(domain_count)])
    value_BD = np.empty((len(loss_BC), domain_count))
    for d in range(domain_count):
        without = masks[masks >> d & 1 == 0]
        gain_BC = loss_BC[:, without] - loss_BC[:, without | 1 << d]
        value_BD[:, d] = gain_BC @ order_share[size_C[without]]
    return value_BD


def _relative_worth_BD(value_BD: np.ndarray, parsimony: float) -> np.ndarray:
    """Each domain's worth as a share of the row's most worthy domain.

    Not a share of the total: outcomes were measured with gates fully open, so two domains that are both needed
    should both be near 1, not near one half. A worth of at most ``parsimony`` nats counts as none.
    """
    worth_BD = np.where(value_BD > parsimony, value_BD, 0.0)
    most_B1 = worth_BD.max(axis=1, keepdims=True)
    return np.divide(worth_BD, most_B1, out=np.zeros_like(worth_BD), where=most_B1 > 0)
