"""What a campaign's second phase found: of this its report, its bundle and its certificate are made."""

from __future__ import annotations

from dataclasses import dataclass

from bs_cluster.campaign.answers import Answers
from bs_cluster.campaign.measure import Routing
from bs_cluster.data.frozen import DomainRows
from bs_cluster.records import Probe


@dataclass(frozen=True)
class Measured:
    """On which rows; the routing; answers in words; and each domain's losses and probe with its own stacks alone."""

    rows: dict[str, DomainRows]
    routing: Routing
    answers: Answers
    isolated: dict[str, tuple[float, ...]]
    probes: dict[str, Probe]
