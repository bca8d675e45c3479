"""What a campaign hands over for its report: measured numbers, in the units they were measured in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bs_cluster.records import BaseRef, DomainRecord

# How a domain's rows can be answered, from nothing added to the best subset in hindsight.
MODES = ("base", "isolated", "parents", "ungated", "routed", "oracle")

OUTCOME_COLUMNS = ("row_id", "domain", "mask", "nll", "tokens")


@dataclass(frozen=True)
class ReportInputs:
    """Everything the report is computed from. Losses are means in nats per completion token.

    ``domains`` is curriculum order; a domain without a record has not closed. ``histories`` maps a stack's name
    (``chat_r1``) to its training lines ``{step, loss, val_loss, load_balance, grad_norm, lr}``, of which any but
    ``step`` may be absent. ``losses`` maps a mode of ``MODES`` to a loss per domain, and ``loss_notes`` says of a
    mode what a reader must know to compare it (the oracle is measured on the sweep's held-out rows).

    ``isolated_row_losses`` is every domain's loss per validation row now, with only its own stacks: the same rows
    in the same order as ``DomainRecord.row_losses``, so that the difference is drift. ``overlap`` is the mean
    squared cosine between two domains' claimed directions, averaged over sites; empty with the null space off.
    ``gates`` maps a row's true domain to the mean gate weight served to each domain.

    ``outcomes`` has a line per held-out row and combination: bit d of ``mask`` says that ``domains[d]`` fires,
    ``nll`` is the row's loss summed over its ``tokens`` completion tokens.
    """

    campaign: str
    config_yaml: str
    base: BaseRef
    domains: tuple[str, ...]
    records: tuple[DomainRecord, ...]
    losses: Mapping[str, Mapping[str, float]]
    isolated_row_losses: Mapping[str, tuple[float, ...]]
    histories: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    loss_notes: Mapping[str, str] = field(default_factory=dict)
    overlap: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    router: Mapping[str, Any] = field(default_factory=dict)
    gates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    outcomes: pa.Table | None = None
    sweep: Mapping[str, float] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    data_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        unknown = set(self.losses) - set(MODES)
        assert not unknown, f"losses has the unknown modes {sorted(unknown)}; the modes are {MODES}"
        strangers = {record.domain for record in self.records} - set(self.domains)
        assert not strangers, f"records of {sorted(strangers)}, which are not among the domains {self.domains}"

    def record(self, domain: str) -> DomainRecord | None:
        return next((record for record in self.records if record.domain == domain), None)
