"""Computes a bundle's certificate again, from the store and the base alone, and holds the two against each other.

No configuration, no source of rows, no MLflow and no Ray: what the certificate says it stands on is read by digest, the
base is loaded and digested, every domain's logits and the losses of rows are computed anew in this process.

Shapes: B rows, C combinations.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from bs_cluster.campaign.certify import OUTCOMES, UNOWNED, certificate_of, closings
from bs_cluster.campaign.promote import bundle_losses, compare
from bs_cluster.certificate import (
    CERTIFICATE,
    LOSS_TOLERANCE,
    Certificate,
    Isolated,
    Verdict,
    compare_probes,
    logits_statement,
    probe_digest,
    prove,
)
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.errors import IntegrityError, NotInStoreError
from bs_cluster.estimates import Estimate, token_mean
from bs_cluster.inference.probe import probe, probe_rows
from bs_cluster.inference.scoring import score_batch, score_routed
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.promotion import FOREIGN, SERVED, group_of, standing
from bs_cluster.records import (
    BundleManifest,
    DomainRecord,
    ModeLosses,
    Record,
    RowLoss,
    canonical_json,
    sha256_hex,
)
from bs_cluster.serving.runtime import bundle_config
from bs_cluster.store import Store
from bs_cluster.store.refs import PROMOTIONS, bundle_ref
from bs_cluster.sweep.combinations import full_mask, mask_weights
from bs_cluster.sweep.outcomes import CONFLICT_TOLERANCE, OutcomeTable
from bs_cluster.sweep.plan import plan_work

Agreement = Literal["agrees", "differs", "cannot be compared"]
AGREEMENT: dict[Verdict, Agreement] = {
    "holds": "agrees",
    "does not hold": "differs",
    "cannot be judged": "cannot be compared",
}
RESCORED = ("base", SERVED, "ungated")
MODE_WORDS = {"isolated": "isolated", "base": "base", SERVED: "served", "ungated": "ungated"}
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


def recompute(
    store: Store, bundle: BundleManifest, device: str, rows_each: int | None, say: Callable[[str], None]
) -> Recomputed:
    """Every fact and statement of the bundle's certificate, again. ``rows_each`` limits how many rows of each owner are
    scored, evenly spaced; None scores all. Raises NotInStoreError for a bundle without a certificate, IntegrityError
    for bytes that are not what they are named."""
    certified = certificate_in(store, bundle)
    config = bundle_config(store, bundle)
    for entry in certified.files:
        store.get_bytes(entry.sha256)
    say(f"{config.base.model} is loaded and digested")
    stacked = StackedBase.load(config.base, device)
    lines = [_line("base", certified.base.digest, stacked.base.ref.digest)]
    if stacked.base.ref.digest != bundle.base.digest:
        return Recomputed(store.campaign, bundle.number, False, 0, tuple(lines))
    for ref in bundle.stacks:
        stacked.attach(store.manifest(ref.manifest), store)

    losses = bundle_losses(store, bundle)
    alone = [_alone(store, record, stacked, config, rows_each, say) for record in closings(store, bundle)]
    say("sweep rows are scored")
    rescored, unmeasured = _rescore(store, bundle, stacked, config, losses, rows_each)
    champion = _judged_against(store, bundle)
    served = champion and compare(store, champion, bundle, config.promotion.tolerance)
    now = certificate_of(store, bundle, config, losses, [domain.now for domain in alone], served)
    lines += _dependencies(certified, now)
    lines += _domains(certified, alone)
    own = [row for domain in alone for row in domain.rescored]
    lines += _scored([*own, *rescored])
    lines += _stored_numbers(certified, now, unmeasured)
    lines += _statements(certified, now)
    agrees = all(line.verdict != "differs" for line in lines)
    return Recomputed(store.campaign, bundle.number, agrees, len(own) + len(rescored), tuple(lines))


def certificate_in(store: Store, bundle: BundleManifest) -> Certificate:
    """The certificate that a bundle holds. Raises NotInStoreError where it holds none."""
    if not any(entry.name == CERTIFICATE for entry in bundle.files):
        raise NotInStoreError(f"bundle {bundle.number} has no certificate; the next bundle of the campaign has one")
    return Certificate.from_json(store.get_bytes(bundle.file(CERTIFICATE).sha256))


def _judged_against(store: Store, bundle: BundleManifest) -> BundleManifest | None:
    """The champion when the bundle was committed, by the store's history."""
    refs = [entry.ref for entry in store.history()]
    before = sum(ref.startswith(PROMOTIONS) for ref in refs[: refs.index(bundle_ref(bundle.number))])
    champion = standing(store.promotions()[:before]).champion
    return None if champion is None else store.bundle(champion.manifest)


# What is computed anew


@dataclass(frozen=True)
class Alone:
    """A domain with its own stacks alone: ``stored`` is what its closing record says, ``now`` what came out on the rows
    that were scored again, ``rescored`` these rows."""

    stored: Isolated
    now: Isolated
    rescored: tuple[Rescored, ...]


def _alone(
    store: Store,
    record: DomainRecord,
    stacked: StackedBase,
    config: CampaignConfig,
    rows_each: int | None,
    say: Callable[[str], None],
) -> Alone:
    name, names = record.domain, stacked.of(record.domain)
    say(f"{name} alone")
    validation = _rows(store, record).validation
    if len(validation) != len(record.row_losses):
        raise IntegrityError(
            f"domain {name} closed with {len(record.row_losses)} losses and holds {len(validation)} validation rows; "
            "repair the store"
        )
    tokens = [row.completion_length for row in validation]
    (stored,) = prove([record], {name: record.row_losses}, {name: tokens}, {name: record.probe})
    places = _spaced(range(len(validation)), rows_each)
    again = _score_alone(stacked, names, [validation[i] for i in places], config.training.eval_batch_tokens)
    then = [RowLoss(record.row_losses[i] * tokens[i], tokens[i]) for i in places]
    scored = dataclasses.replace(record, row_losses=tuple(record.row_losses[i] for i in places))
    means, counts = [loss.mean for loss in again], [loss.tokens for loss in again]
    probed = probe(stacked, names, probe_rows(validation))
    (now,) = prove([scored], {name: means}, {name: counts}, {name: probed})
    return Alone(stored, now, tuple(Rescored("isolated", name, *pair) for pair in zip(then, again, strict=True)))


def _score_alone(
    stacked: StackedBase, names: Sequence[str], rows: Sequence[EncodedRow], batch_tokens: int
) -> list[RowLoss]:
    """Batched as at the domain's closing."""
    stacked.fire(names)
    found: dict[int, RowLoss] = {}
    for batch in plan_batches([len(row.input_ids) for row in rows], batch_tokens):
        found |= zip(batch, score_batch(stacked, [rows[place] for place in batch]), strict=True)
    stacked.fire(stacked.names)
    return [found[place] for place in range(len(rows))]


def _rescore(
    store: Store,
    bundle: BundleManifest,
    stacked: StackedBase,
    config: CampaignConfig,
    losses: ModeLosses,
    rows_each: int | None,
) -> tuple[list[Rescored], list[str]]:
    """Sweep rows under the combination that each mode's stored loss was measured under. Also the rows and modes whose
    stored loss is none that the sweep measured."""
    parts = [_rows(store, record) for record in closings(store, bundle)]
    parts.append(DomainRows.from_parquet(store.get_bytes(bundle.file(UNOWNED).sha256), "", {}))
    rows = {row.id: row for part in parts for row in part.sweep}
    masks, unmeasured = _masks(store, bundle, losses, rows.keys())
    picked = [
        place
        for owner in dict.fromkeys(losses.owners)
        for place in _spaced([i for i, held in enumerate(losses.owners) if held == owner], rows_each)
    ]
    wanted = [
        (mode, place, mask)
        for place in picked
        for mode, mask in masks[place].items()
        if mode != "ungated" or group_of(losses.owners[place]) == FOREIGN
    ]
    lengths = [len(rows[id].input_ids) if id in rows else 0 for id in losses.row_ids]
    again: dict[tuple[int, int], RowLoss] = {}
    for batch in plan_work(((place, mask) for _, place, mask in wanted), lengths, config.sweep.batch_tokens):
        asked = [rows[losses.row_ids[place]] for place, _ in batch.requests]
        weights = [mask_weights(mask, len(bundle.domains)) for _, mask in batch.requests]
        again |= zip(batch.requests, score_routed(stacked, asked, weights, bundle.domains), strict=True)
    rescored = [
        Rescored(mode, group_of(losses.owners[place]), _stored(losses, mode, place), again[place, mask])
        for mode, place, mask in wanted
    ]
    return rescored, unmeasured


def _masks(
    store: Store, bundle: BundleManifest, losses: ModeLosses, known: Collection[str]
) -> tuple[list[dict[str, int]], list[str]]:
    """By row and mode the combination under which the sweep measured just that loss, any of several; and each row and
    mode of which it measured no such loss. Of rows that are not ``known``, by id, it cannot have."""
    table = OutcomeTable.from_arrow(pq.read_table(io.BytesIO(store.get_bytes(bundle.file(OUTCOMES).sha256))))
    place = {id: row for row, id in enumerate(table.row_ids) if id in known}
    measured = table.masks()
    nll_BC = table.nll_BC(measured)
    fixed = {"base": 0, "ungated": full_mask(len(bundle.domains))}
    found: list[dict[str, int]] = [{} for _ in losses.row_ids]
    unmeasured = []
    for mode in RESCORED:
        for row, (id, nll) in enumerate(zip(losses.row_ids, losses.nll.get(mode, ()), strict=True)):
            equal_C = nll_BC[place[id]] == nll if id in place and nll is not None else np.zeros(len(measured), bool)
            masks = [mask for mask, equal in zip(measured, equal_C, strict=True) if equal]
            masks = [mask for mask in masks if mask == fixed.get(mode, mask)]
            if masks:
                found[row][mode] = masks[0]
            else:
                unmeasured.append(f"{mode} of {id}")
    return found, unmeasured


def _stored(losses: ModeLosses, mode: str, place: int) -> RowLoss:
    nll = losses.nll[mode][place]
    assert nll is not None
    return RowLoss(nll, losses.tokens[place])


def _rows(store: Store, record: DomainRecord) -> DomainRows:
    return DomainRows.from_parquet(store.get_bytes(record.rows), record.data_fingerprint, record.data_counts)


def _spaced(places: Sequence[int], count: int | None) -> list[int]:
    """At most ``count`` of the places, evenly spaced."""
    taken = len(places) if count is None else min(count, len(places))
    return [places[i * len(places) // taken] for i in range(taken)]


# What is held against each other


def _line(what: str, certified: str, recomputed: str, verdict: Agreement | None = None, why: str = "") -> Line:
    """Equal or not, where no ``verdict`` is given; digests are shown by their beginning."""
    found = verdict or ("agrees" if certified == recomputed else "differs")
    return Line(what, _short(certified), _short(recomputed), found, why)


def _short(text: str) -> str:
    return text[:12] if DIGEST.fullmatch(text) else text


def _digest(value: Any) -> str:
    return sha256_hex(canonical_json(value))


def _dependencies(certified: Certificate, now: Certificate) -> list[Line]:
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
    return [_line(what, _digest(said[what]), _digest(found[what])) for what in found]


def _domains(certified: Certificate, alone: Sequence[Alone]) -> list[Line]:
    """Of every domain alone: what is said of its closing, and its logits now, to the bit."""
    lines = []
    said = {one.domain: one for one in certified.isolated}
    for domain in alone:
        name, held = domain.now.domain, said.get(domain.now.domain)
        if held is None:
            lines.append(_line(f"{name} alone", "nothing", probe_digest(domain.now.now)))
            continue
        closing = [probe_digest(one.at_closing) for one in (held, domain.stored)]
        same = held.at_closing == domain.stored.at_closing and _same_closing(held, domain.stored)
        lines.append(_line(f"probe and loss at closing, {name}", *closing, "agrees" if same else "differs"))
        verdict, detail = compare_probes(held.now, domain.now.now)
        now = [probe_digest(probe) for probe in (held.now, domain.now.now)]
        why = "" if verdict == "holds" else detail
        lines.append(_line(f"isolated logits, {name}", *now, AGREEMENT[verdict], why))
    return lines


def _same_closing(held: Isolated, stored: Isolated) -> bool:
    """Whether the losses that a certificate states are those of the closing record, and its change within its drift."""
    said = (held.loss_at_closing, stored.loss_at_closing, held.loss_now, held.drift)
    if None in said:
        return held.loss_at_closing == stored.loss_at_closing
    closing, record, now, drift = map(float, said)  # type: ignore[arg-type]
    return held.rows == stored.rows and abs(closing - record) <= EXACT and abs(now - closing) <= drift + EXACT


def _scored(rescored: Sequence[Rescored]) -> list[Line]:
    """Rows that were scored again, by mode and group: each must come out as stored, and so must their mean."""
    lines = []
    for mode, group in dict.fromkeys((one.mode, one.group) for one in rescored):
        rows = [one for one in rescored if (one.mode, one.group) == (mode, group)]
        stored, again = token_mean([one.stored for one in rows]), token_mean([one.again for one in rows])
        gaps = [abs(one.stored.mean - one.again.mean) for one in rows]
        same = all(
            one.stored.tokens == one.again.tokens and gap <= CONFLICT_TOLERANCE * (1 + one.stored.mean)
            for one, gap in zip(rows, gaps, strict=True)
        )
        verdict = "agrees" if same and abs(stored - again) <= LOSS_TOLERANCE else "differs"
        what = f"{MODE_WORDS[mode]} loss, {len(rows)} rows, {group}"
        lines.append(
            _line(what, f"{stored:.4f}", f"{again:.4f}", verdict, f"largest difference of a row {max(gaps):.2g}")
        )
    return lines


def _stored_numbers(certified: Certificate, now: Certificate, unmeasured: Sequence[str]) -> list[Line]:
    """What follows from stored losses by arithmetic alone."""
    lines = []
    rows = sum(used.sweep for used in now.rows.values())
    if unmeasured:
        why = f"not an outcome of the sweep: {', '.join(unmeasured[:3])}"
        lines.append(_line("losses are outcomes", f"{rows} rows", f"{len(unmeasured)} losses are not", "differs", why))
    else:
        lines.append(_line("losses are outcomes", f"{rows} rows", f"{rows} rows"))
    rivals = [f"bundle {held.served.against}" if held.served else "nobody" for held in (certified, now)]
    lines.append(_line("judged against", *rivals))
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
    shown = [str(estimate) if estimate else "not measured" for estimate in (certified, recomputed)]
    return _line(what, *shown, "agrees" if same else "differs")


def _statements(certified: Certificate, now: Certificate) -> list[Line]:
    """Of bits, a verdict that this machine cannot give is not another verdict."""
    of_bits = {logits_statement(domain) for domain in now.domains}
    said = {one.statement: one for one in certified.statements}
    found = {one.statement: one for one in now.statements}
    lines = []
    for statement in {**said, **found}:
        one, again = said.get(statement), found.get(statement)
        words = [held.verdict if held else "not stated" for held in (one, again)]
        open_here = statement in of_bits and words[1] == "cannot be judged" and one is not None
        verdict = "agrees" if words[0] == words[1] else "cannot be compared" if open_here else "differs"
        lines.append(_line(statement, *words, verdict, again.detail if again else ""))
    return lines
