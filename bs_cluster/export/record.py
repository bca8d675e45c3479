"""What an export is asked for, and what it says of itself: ``export.json`` in the folder.

Losses are nats per completion token.
"""

from __future__ import annotations

from dataclasses import dataclass

from bs_cluster.estimates import Estimate
from bs_cluster.records import BaseRef, Record, StackRef

STACK, LORA, MERGED = "stack", "lora", "merged"
FORMS = (STACK, LORA, MERGED)
EXPORT_RECORD, CARD = "export.json", "README.md"


@dataclass(frozen=True)
class Wanted(Record):
    """``gates`` is the weight of each domain that fires, the others are off. ``rank`` is that of a plain LoRA, None for
    the rank that it has by itself. ``license`` is what the card says, None for what is known of the base."""

    form: str
    gates: dict[str, float]
    rank: int | None
    license: str | None


@dataclass(frozen=True)
class DomainLosses(Record):
    """Held-out rows of one domain under the bare base, the campaign's stacks under the wanted gates, and what was
    written, loaded again from its folder. ``gap`` is that less the stacks, ``gain`` less the base, both paired."""

    domain: str
    tokens: int
    base: Estimate
    stacks: Estimate
    exported: Estimate
    gap: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Exported(Record):
    """``rank`` is that of the plain LoRA, None for other forms. ``gate_rows`` is by domain how many training rows its
    fixed gates are the mean over, empty where gates stay what they are. ``rows`` holds the digest of each domain's
    frozen rows, ``environment`` what losses depend on besides weights and rows."""

    form: str
    campaign: str
    bundle: int
    manifest: str
    gates: dict[str, float]
    rank: int | None
    gate_rows: dict[str, int]
    base: BaseRef
    revision: str | None
    template: str
    stacks: tuple[StackRef, ...]
    losses: tuple[DomainLosses, ...]
    rows: dict[str, str]
    environment: dict[str, str]
    code_version: str
