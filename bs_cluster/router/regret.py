"""How much routing loses against the best combination of every row, and how other policies would have done.

Shapes: B held-out rows, D domains. Losses and regrets are nats per completion token, means are over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bs_cluster.errors import DataError
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.summary import summarise

# From here on a gate counts as "the router chose this domain": a floor keeps some domains on in every prompt.
CHOSEN = 0.5


def regret_report(
    table: OutcomeTable,
    train: Sequence[int],
    holdout: Sequence[int],
    routed_B: np.ndarray,
    weights_BD: np.ndarray,
    tolerance: float = 0.01,
) -> dict[str, Any]:
    """Regret of the served router and of fixed policies on the held-out rows, JSON-ready.

    ``routed_B`` is the loss measured under the served gate weights ``weights_BD``, both in the order of ``holdout``;
    ``train`` and ``holdout`` index the rows of ``table``.

    - ``regret``, ``label_regret``, ``all_on_regret``, ``base_regret``: mean loss over the oracle's. The oracle is the
      best *binary* combination, so soft gates can reach below zero.
    - ``best_single``, ``best_single_regret``: the one domain, always on alone, that is best over the training rows;
      ``best_single_hindsight`` and its regret: the same chosen on the held-out rows themselves.
    - ``accuracy``: share of rows whose chosen set (gates at ``CHOSEN`` or more) measured within ``tolerance`` nats of
      the oracle. ``exact_set``: the chosen set is the oracle's own, which near-ties make stricter than it is useful.
      ``label_top1``: the strongest gate is the row's own domain.
    - ``by_domain``: the same per row domain, with the mean losses themselves.
    """
    if len(routed_B) != len(holdout) or weights_BD.shape != (len(holdout), len(table.domains)):
        raise DataError(f"{len(holdout)} held-out rows, {len(routed_B)} routed losses, weights of {weights_BD.shape}")
    if not np.isfinite(routed_B).all():
        raise DataError(f"{int((~np.isfinite(routed_B)).sum())} routed losses are not finite; the bundle is broken")
    held, seen = table.subset(holdout), table.subset(train)
    outcomes = summarise(held)
    best_single = int(summarise(seen).single_BD.mean(axis=0).argmin())
    hindsight = int(outcomes.single_BD.mean(axis=0).argmin())
    chosen_B = (weights_BD >= CHOSEN) @ (1 << np.arange(len(table.domains)))
    # An unmeasured set (beam) compares as infinitely bad.
    chosen_loss_B = np.array([held.losses(row).get(int(mask), np.inf) for row, mask in enumerate(chosen_B)])
    regrets = {
        "regret": routed_B - outcomes.oracle_B,
        "label_regret": outcomes.label_B - outcomes.oracle_B,
        "all_on_regret": outcomes.all_on_B - outcomes.oracle_B,
        "base_regret": outcomes.base_B - outcomes.oracle_B,
        "best_single_regret": outcomes.single_BD[:, best_single] - outcomes.oracle_B,
        "best_single_hindsight_regret": outcomes.single_BD[:, hindsight] - outcomes.oracle_B,
        "accuracy": (chosen_loss_B <= outcomes.oracle_B + tolerance).astype(float),
        "exact_set": (chosen_B == outcomes.best_mask_B).astype(float),
        "label_top1": (weights_BD.argmax(axis=1) == held.label_B).astype(float),
    }
    losses = {"routed": routed_B, "oracle": outcomes.oracle_B, "label": outcomes.label_B}
    losses |= {"all_on": outcomes.all_on_B, "base": outcomes.base_B}
    per_domain = {name: outcomes.domain_means(values_B) for name, values_B in (regrets | losses).items()}
    present = [name for name in table.domains if name in held.row_domains]
    return {
        **{name: float(values_B.mean()) for name, values_B in regrets.items()},
        "best_single": table.domains[best_single],
        "best_single_hindsight": table.domains[hindsight],
        "rows": len(holdout),
        "by_domain": {
            domain: {"rows": held.row_domains.count(domain)}
            | {name: means[domain] for name, means in per_domain.items()}
            for domain in present
        },
    }
