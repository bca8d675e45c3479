"""The certificate of a bundle: what adding domains did to what was there before, in facts that anybody can compute
again from the store, and in statements that follow from those facts alone.

What holds to the bit is said of logits on a pinned set of rows (``inference.probe``). Bits hang on the machine: where
the environments differ and the bits do too, losses are compared, and the statement is left open with its reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from bs_cluster.errors import IntegrityError
from bs_cluster.estimates import Estimate
from bs_cluster.promotion import ServedChange
from bs_cluster.records import (
    BaseRef,
    DomainRecord,
    FileEntry,
    Manifest,
    Probe,
    Record,
    StackRef,
    canonical_json,
    sha256_hex,
)

CERTIFICATE = "certificate.json"

Verdict = Literal["holds", "does not hold", "cannot be judged"]

# How far apart two measurements of one loss may be, on machines or in batches that round otherwise: a row's by this
# share of it and of one nat more, as in a sweep; the mean of several rows by so many nats per token.
ROW_TOLERANCE, MEAN_TOLERANCE = 0.05, 0.02
# Nats per token by which rows foreign to every domain may be served worse than by the base: in the mean, and where the
# interval must end.
FOREIGN_SLACK, FOREIGN_REACH = 0.01, 0.05


@dataclass(frozen=True)
class Statement(Record):
    """``detail`` says on what it rests, or why it cannot be judged."""

    statement: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class RowsUsed(Record):
    """Rows that a certificate stands on: the digest of the blob that holds them, the fingerprint of the domain's data
    (None for rows that no domain owns), how many validated its stacks and how many were swept."""

    sha256: str
    fingerprint: str | None
    validation: int
    sweep: int


@dataclass(frozen=True)
class Isolated(Record):
    """A domain with its own stacks alone, at its closing and now: its probe, and its loss on ``rows`` validation rows,
    in nats per completion token. ``drift`` is the largest change of a row's; None where a loss is not finite."""

    domain: str
    at_closing: Probe
    now: Probe
    loss_at_closing: float | None
    loss_now: float | None
    drift: float | None
    rows: int


@dataclass(frozen=True)
class GeneralText(Record):
    """The ``rows`` sweep rows that are foreign to every domain: their loss on the base, as served and with all stacks
    on, and how far the two are from the base. None where no such row was measured."""

    rows: int
    base: Estimate | None
    served: Estimate | None
    all_on: Estimate | None
    served_change: Estimate | None
    drift: Estimate | None


@dataclass(frozen=True)
class Certificate(Manifest):
    """``files`` are those of the bundle that the statements come from, ``closings`` the digest of each domain's closing
    record, ``rows`` by whose they are. ``served`` is against the champion that the bundle was judged against, None
    where there was none."""

    schema_version: int
    campaign: str
    bundle: int
    base: BaseRef
    stacks: tuple[StackRef, ...]
    domains: tuple[str, ...]
    seed: int
    config_digest: str
    code_version: str
    files: tuple[FileEntry, ...]
    closings: dict[str, str]
    rows: dict[str, RowsUsed]
    isolated: tuple[Isolated, ...]
    served: ServedChange | None
    general: GeneralText
    statements: tuple[Statement, ...]

    def to_json(self) -> bytes:
        """Canonical JSON: equal certificates give equal bytes."""
        return canonical_json(self.to_dict()) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises IntegrityError for what is no certificate, or one that another version wrote."""
        try:
            return cls.from_dict(json.loads(data))
        except ValueError as error:
            raise IntegrityError(f"{CERTIFICATE} is no JSON ({error}); make another bundle") from error


def summary(statements: Sequence[Statement]) -> str:
    """``12 statements: 11 hold, 1 cannot be judged``."""
    words = {"holds": "hold", "does not hold": "do not hold", "cannot be judged": "cannot be judged"}
    counts = {verdict: sum(said.verdict == verdict for said in statements) for verdict in words}
    told = ", ".join(f"{count} {words[verdict]}" for verdict, count in counts.items() if count)
    return f"{len(statements)} statements: {told}"


def prove(
    records: Sequence[DomainRecord],
    losses: Mapping[str, Sequence[float]],
    tokens: Mapping[str, Sequence[int]],
    probes: Mapping[str, Probe],
) -> tuple[Isolated, ...]:
    """Each closed domain of ``probes``, its record against what was measured now: ``losses``, means over the completion
    ``tokens`` of its validation rows, in their order."""
    found = []
    for record in (record for record in records if record.domain in probes):
        then, now, counts = record.row_losses, losses[record.domain], tokens[record.domain]
        drift = [abs(after - before) for before, after in zip(then, now, strict=True)]
        found.append(
            Isolated(
                domain=record.domain,
                at_closing=record.probe,
                now=probes[record.domain],
                loss_at_closing=_mean(then, counts),
                loss_now=_mean(now, counts),
                drift=max(drift) if drift and all(map(math.isfinite, drift)) else None,
                rows=len(then),
            )
        )
    return tuple(found)


def _mean(losses: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Over all tokens, of means over each row's."""
    total = sum(loss * count for loss, count in zip(losses, tokens, strict=True))
    return total / sum(tokens) if tokens and math.isfinite(total) else None


def state(isolated: Sequence[Isolated], served: ServedChange | None, general: GeneralText) -> tuple[Statement, ...]:
    """Everything that a certificate states, from its facts alone."""
    logits = [Statement(logits_statement(one.domain), *compare_probes(one.at_closing, one.now)) for one in isolated]
    losses = [Statement(f"Isolated loss of {one.domain} is that of its closing", *_same_loss(one)) for one in isolated]
    last = Statement("Rows foreign to every domain are served as by the base", *_general_kept(general))
    return (*logits, *losses, _served_no_worse(served), last)


def logits_statement(domain: str) -> str:
    """The one statement that hangs on the machine which judges it."""
    return f"Isolated logits of {domain} are those of its closing"


def compare_probes(then: Probe, now: Probe) -> tuple[Verdict, str]:
    """Whether two probes of one domain are equal to the bit; where their environments make that impossible, whether
    losses contradict it."""
    pairs = list(zip(then.rows, now.rows, strict=False))
    if len(then.rows) != len(now.rows) or any(before.id != after.id for before, after in pairs):
        return "does not hold", "they are not of the same rows"
    differing = sum(before.logits != after.logits for before, after in pairs)
    close = all(same_measurement(before.loss, after.loss) for before, after in pairs)
    if not differing and close:
        return "holds", f"to the bit on {len(pairs)} rows"
    largest = max((_gap(before.loss, after.loss) for before, after in pairs), default=math.nan)
    told = f"{differing} of {len(pairs)} rows differ, losses by at most {largest:.2g} nats per token"
    because = differences(then, now)
    if not because or not close:
        return "does not hold", f"{told}; {because}" if because else f"{told}, computed alike"
    return "cannot be judged", f"not comparable bit by bit, because {because}; {told}, which rounding explains"


def same_measurement(before: float | None, after: float | None) -> bool:
    """Whether two losses of a row, in nats per token, may be one measured twice."""
    return _gap(before, after) <= ROW_TOLERANCE * (1 + (before or 0.0))


def differences(then: Probe, now: Probe) -> str:
    """What the bits hang on and was another then, in words; empty where nothing was."""
    names = sorted(then.environment.keys() | now.environment.keys())
    pairs = [(name, then.environment.get(name, "not told"), now.environment.get(name, "not told")) for name in names]
    return ", ".join(f"{name} was {before} and is {after}" for name, before, after in pairs if before != after)


def probe_digest(probe: Probe) -> str:
    """SHA-256 (hex) over the digests of its rows: one word for all of a domain's probed bits."""
    return sha256_hex(canonical_json([[row.id, row.logits] for row in probe.rows]))


def _gap(before: float | None, after: float | None) -> float:
    """Losses that are not finite on both sides are equal; on one side they are as far apart as can be."""
    if before is None or after is None:
        return 0.0 if before is after else math.inf
    return abs(after - before)


def _same_loss(one: Isolated) -> tuple[Verdict, str]:
    if one.drift is None or one.loss_at_closing is None or one.loss_now is None:
        return "cannot be judged", f"a loss of {one.rows} validation rows is not finite"
    if one.drift == 0:
        return "holds", f"to the bit on {one.rows} validation rows"
    moved = one.loss_now - one.loss_at_closing
    told = (
        f"the mean of {one.rows} validation rows moved by {moved:+.2g} nats per token, a row by at most {one.drift:.2g}"
    )
    return "holds" if abs(moved) <= MEAN_TOLERANCE else "does not hold", told


def _served_no_worse(change: ServedChange | None) -> Statement:
    """As the report's finding: where the whole interval of every group ends within the tolerance."""
    if change is None:
        return Statement(
            "No group of rows is served worse than by the champion", "cannot be judged", "no champion before it"
        )
    statement = f"Bundle {change.bundle} serves no group of rows worse than bundle {change.against}"
    told = ", ".join(f"{group.group} {group.difference or 'without an interval'}" for group in change.groups)
    if change.worse:
        return Statement(statement, "does not hold", told)
    if change.missing or not change.groups:
        missing = ", ".join(change.missing) or "any group"
        return Statement(statement, "cannot be judged", f"no row of {missing} was measured for both")
    within = all(group.difference and group.difference.high <= change.tolerance for group in change.groups)
    return Statement(statement, "holds" if within else "cannot be judged", told)


def _general_kept(general: GeneralText) -> tuple[Verdict, str]:
    change = general.served_change
    if change is None:
        return "cannot be judged", "no foreign row was measured"
    told = f"served − base {change}"
    if change.mean <= FOREIGN_SLACK and change.high <= FOREIGN_REACH:
        return "holds", told
    return "does not hold" if change.low > FOREIGN_SLACK else "cannot be judged", told
