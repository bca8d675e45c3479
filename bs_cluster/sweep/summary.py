"""What the outcomes say before any router: each row's best combination, and the fixed policies to compare with.

Shapes: B rows, D domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bs_cluster.errors import DataError
from bs_cluster.sweep.combinations import full_mask
from bs_cluster.sweep.outcomes import OutcomeTable


@dataclass(frozen=True)
class RowOutcomes:
    """Per row, float64 nats per completion token: the ``oracle`` (best measured subset), the row's own domain alone
    (``label``), all domains (``all_on``), none (``base``), and each domain alone (``single_BD``).

    ``best_mask_B`` attains the oracle, ties going to fewer domains.
    """

    domains: tuple[str, ...]
    row_domains: tuple[str, ...]
    best_mask_B: np.ndarray
    oracle_B: np.ndarray
    label_B: np.ndarray
    all_on_B: np.ndarray
    base_B: np.ndarray
    single_BD: np.ndarray

    def domain_means(self, values_B: np.ndarray) -> dict[str, float]:
        """Mean of a per-row quantity over each domain's rows; a domain without rows is absent."""
        owner_B = np.array(self.row_domains)
        return {
            name: float(np.mean(values_B[owner_B == name])) for name in self.domains if name in set(self.row_domains)
        }

    @property
    def oracle(self) -> dict[str, float]:
        """Mean oracle loss of each domain's rows."""
        return self.domain_means(self.oracle_B)


def summarise(table: OutcomeTable) -> RowOutcomes:
    """Best combination and fixed policies of every row.

    Raises DataError when a row lacks the base, a single domain or all domains, which every search measures.
    """
    domain_count = len(table.domains)
    singles = [1 << d for d in range(domain_count)]
    anchors = [0, full_mask(domain_count), *singles]
    if missing := table.missing(anchors):
        raise DataError(
            f"{len(missing)} outcomes of base, single domains and all domains are not measured, first: row "
            f"{table.row_ids[missing[0][0]]!r}; finish the sweep first"
        )
    losses = [table.losses(row) for row in range(len(table.row_ids))]
    best = [min(row, key=lambda mask: (row[mask], mask.bit_count(), mask)) for row in losses]
    anchor_BC = table.loss_BC(anchors)
    return RowOutcomes(
        domains=table.domains,
        row_domains=table.row_domains,
        best_mask_B=np.array(best, dtype=np.int64),
        oracle_B=np.array([row[mask] for row, mask in zip(losses, best, strict=True)]),
        label_B=anchor_BC[np.arange(len(losses)), 2 + table.label_B],
        all_on_B=anchor_BC[:, 1],
        base_B=anchor_BC[:, 0],
        single_BD=anchor_BC[:, 2:],
    )
