"""Where a certificate and what was computed again agree: a line for each thing that is certified. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bs_cluster.certificate import (
    MEAN_TOLERANCE,
    Certificate,
    Isolated,
    Verdict,
    compare_probes,
    logits_statement,
    probe_digest,
    same_measurement,
)
from bs_cluster.estimates import Estimate, token_mean
from bs_cluster.promotion import SERVED
from bs_cluster.records import Record, RowLoss, canonical_json, sha256_hex

Agreement = Literal["agrees", "differs", "cannot be compared"]
AGREEMENT: dict[Verdict, Agreement] = {
    "holds": "agrees",
    "does not hold": "differs",
    "cannot be judged": "cannot be compared",
}
WORDS = {SERVED: "served"}  # for modes that are not called by their own names
DIGEST = re.compile(r"[0-9a-f]{64}")
EXACT = 1e-9  # what the same arithmetic on the same stored numbers may differ by


@dataclass(frozen=True)
class Line(Record):
    """One thing that is certified, as it is said and as it came out now; ``why`` says more where they are not equal."""

    what: str
    certified: str
    recomputed: str
    verdict: Agreement
    why: str


@dataclass(frozen=True)
class Recomputed(Record):
    """``scored`` is how many losses of rows were computed again."""

    campaign: str
    bundle: int
    agrees: bool
    scored: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Rescored:
    """A row under a mode: its loss as stored, and as it came out now."""

    mode: str
    group: str
    stored: RowLoss
    again: RowLoss


@dataclass(frozen=True)
class RoutedAgain:
    """A row's served loss as stored, and under the gates that were found now; ``other`` where these are others."""

    group: str
    stored: RowLoss
    again: RowLoss
    other: bool


@dataclass(frozen=True)
class Alone:
    """A domain with its own stacks alone: ``stored`` is what its closing record says, ``now`` what came out on the rows
    that were scored again, ``rescored`` these rows."""

    stored: Isolated
    now: Isolated
    rescored: tuple[Rescored, ...]


def line(what: str, certified: str, recomputed: str, verdict: Agreement | None = None, why: str = "") -> Line:
    """Equal or not, where no ``verdict`` is given; digests are shown by their beginning."""
    found = verdict or ("agrees" if certified == recomputed else "differs")
    return Line(what, _short(certified), _short(recomputed), found, why)


def _short(text: str) -> str:
    return text[:12] if DIGEST.fullmatch(text) else text


def _digest(value: Any) -> str:
    return sha256_hex(canonical_json(value))


def dependencies(certified: Certificate, now: Certificate) -> list[Line]:
    """All that the statements stand on, by digest."""

    def parts(held: Certificate) -> dict[str, Any]:
        plain = held.to_dict()
        return {
            "campaign and bundle": [plain["campaign"], plain["bundle"], plain["domains"], plain["code_version"]],
            f"{len(now.stacks)} stacks": plain["stacks"],
            f"{len(now.closings)} closing records": plain["closings"],
            f"{len(now.files)} files of the bundle": plain["files"],
            f"rows of {len(now.rows)} owners": plain["rows"],
            "settings and seed": [plain["config_digest"], plain["seed"]],
        }

    said, found = parts(certified), parts(now)
    return [line(what, _digest(said[what]), _digest(found[what])) for what in found]


def domains_alone(certified: Certificate, alone: Sequence[Alone]) -> list[Line]:
    """Of every domain alone: what is said of its closing, and its logits now, to the bit."""
    lines = []
    said = {one.domain: one for one in certified.isolated}
    for domain in alone:
        name, held = domain.now.domain, said.get(domain.now.domain)
        if held is None:
            lines.append(line(f"{name} alone", "nothing", probe_digest(domain.now.now)))
            continue
        before, stored = probe_digest(held.at_closing), probe_digest(domain.stored.at_closing)
        same = held.at_closing == domain.stored.at_closing and _same_closing(held, domain.stored)
        lines.append(line(f"probe and loss at closing, {name}", before, stored, "agrees" if same else "differs"))
        verdict, detail = compare_probes(held.now, domain.now.now)
        why = "" if verdict == "holds" else detail
        before, now = probe_digest(held.now), probe_digest(domain.now.now)
        lines.append(line(f"isolated logits, {name}", before, now, AGREEMENT[verdict], why))
    return lines


def _same_closing(held: Isolated, stored: Isolated) -> bool:
    """Whether the losses that a certificate states are those of the closing record, and its change within its drift."""
    said = (held.loss_at_closing, stored.loss_at_closing, held.loss_now, held.drift)
    if None in said:
        return held.loss_at_closing == stored.loss_at_closing
    closing, record, now, drift = map(float, said)  # type: ignore[arg-type]
    return held.rows == stored.rows and abs(closing - record) <= EXACT and abs(now - closing) <= drift + EXACT


def scored_rows(rescored: Sequence[Rescored]) -> list[Line]:
    """Rows that were scored again, by mode and group: each must come out as stored, and so must their mean."""
    lines = []
    for mode, group in dict.fromkeys((one.mode, one.group) for one in rescored):
        rows = [one for one in rescored if (one.mode, one.group) == (mode, group)]
        stored, again = token_mean([one.stored for one in rows]), token_mean([one.again for one in rows])
        gaps = [abs(one.stored.mean - one.again.mean) for one in rows]
        same = all(
            one.stored.tokens == one.again.tokens and same_measurement(one.stored.mean, one.again.mean) for one in rows
        )
        verdict = "agrees" if same and abs(stored - again) <= MEAN_TOLERANCE else "differs"
        what = f"{WORDS.get(mode, mode)} loss, {len(rows)} rows, {group}"
        lines.append(
            line(what, f"{stored:.4f}", f"{again:.4f}", verdict, f"largest difference of a row {max(gaps):.2g}")
        )
    return lines


def stored_numbers(certified: Certificate, now: Certificate, unmeasured: Sequence[str]) -> list[Line]:
    """What follows from stored losses by arithmetic alone."""
    lines = []
    rows = sum(used.sweep for used in now.rows.values())
    if unmeasured:
        why = f"not an outcome of the sweep: {', '.join(unmeasured[:3])}"
        lines.append(line("losses are outcomes", f"{rows} rows", f"{len(unmeasured)} losses are not", "differs", why))
    else:
        lines.append(line("losses are outcomes", f"{rows} rows", f"{rows} rows"))
    before, rival = (f"bundle {held.served.against}" if held.served else "nobody" for held in (certified, now))
    lines.append(line("judged against", before, rival))
    said = {group.group: group.difference for group in certified.served.groups} if certified.served else {}
    found = {group.group: group.difference for group in now.served.groups} if now.served else {}
    lines += [_estimates(f"served change, {group}", said.get(group), found.get(group)) for group in {**said, **found}]
    general = (("base", "base"), ("served", "served"), ("all_on", "all stacks on"), ("drift", "all stacks on − base"))
    lines += [
        _estimates(f"general text, {word}", getattr(certified.general, name), getattr(now.general, name))
        for name, word in general
    ]
    return lines


def _estimates(what: str, certified: Estimate | None, recomputed: Estimate | None) -> Line:
    def numbers(estimate: Estimate | None) -> list[float]:
        return [] if estimate is None else [float(value) for value in estimate.to_dict().values()]

    said, found = numbers(certified), numbers(recomputed)
    same = len(said) == len(found) and all(abs(a - b) <= EXACT for a, b in zip(said, found, strict=True))
    before, now = (str(estimate) if estimate else "not measured" for estimate in (certified, recomputed))
    return line(what, before, now, "agrees" if same else "differs")


def statements(certified: Certificate, now: Certificate) -> list[Line]:
    """Of bits, a verdict that this machine cannot give is not another verdict."""
    of_bits = {logits_statement(domain) for domain in now.domains}
    said = {one.statement: one for one in certified.statements}
    found = {one.statement: one for one in now.statements}
    lines = []
    for statement in {**said, **found}:
        one, again = said.get(statement), found.get(statement)
        before, verdict = (held.verdict if held else "not stated" for held in (one, again))
        open_here = statement in of_bits and verdict == "cannot be judged" and one is not None
        agreement = "agrees" if before == verdict else "cannot be compared" if open_here else "differs"
        lines.append(line(statement, before, verdict, agreement, again.detail if again else ""))
    return lines


def gates_again(rows: Sequence[RoutedAgain]) -> list[Line]:
    """The meta-router's gates for rows that it never saw, by what they lose: where states are rounded otherwise a gate
    may be another by one step, and the mean loss is not."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group]
        said, found = token_mean([row.stored for row in own]), token_mean([row.again for row in own])
        other = sum(row.other for row in own)
        verdict = "agrees" if abs(said - found) <= MEAN_TOLERANCE else "differs"
        why = f"{other} rows get other gates" if other else ""
        lines.append(line(f"gates, {len(own)} rows, {group}", f"{said:.4f}", f"{found:.4f}", verdict, why))
    return lines
