"""Computes a bundle's certificate again, from the store and the base alone, and holds the two against each other.

No configuration, no source of rows, no MLflow and no Ray: what the certificate says it stands on is read by digest, the
base is loaded and digested, every domain's logits and the losses of rows are computed anew in this process.

Shapes: B rows, C combinations.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq
import torch

from bs_cluster.campaign.agreement import (
    Alone,
    Recomputed,
    Rescored,
    RoutedAgain,
    dependencies,
    domains_alone,
    gates_again,
    line,
    scored_rows,
    statements,
    stored_numbers,
)
from bs_cluster.campaign.certify import OUTCOMES, UNOWNED, certificate_of, closings
from bs_cluster.campaign.in_process import Scorer, encoder
from bs_cluster.campaign.lessons import Encode, teach_anchor
from bs_cluster.campaign.promote import bundle_losses, compare
from bs_cluster.certificate import CERTIFICATE, Certificate, prove
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows, probe_rows
from bs_cluster.errors import IntegrityError, NotInStoreError
from bs_cluster.inference.probe import probe
from bs_cluster.inference.scoring import score_batch
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.promotion import FOREIGN, SERVED, group_of, standing
from bs_cluster.records import BundleManifest, DomainRecord, ModeLosses, RowLoss
from bs_cluster.router.fit import Lessons, teach
from bs_cluster.router.folds import deal_folds, sample_rows
from bs_cluster.store import Store
from bs_cluster.store.bundle_config import bundle_config
from bs_cluster.store.refs import PROMOTIONS, bundle_ref
from bs_cluster.sweep.combinations import full_mask, mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable

RESCORED = ("base", SERVED, "ungated")


def recompute(
    store: Store, bundle: BundleManifest, device: str, rows_each: int | None, say: Callable[[str], None]
) -> Recomputed:
    """Every fact and statement of the bundle's certificate, again. ``rows_each`` limits how many rows of each owner are
    scored, evenly spaced; None scores all, and finds the meta-router's gates again as well. Raises NotInStoreError
    for a bundle without a certificate, IntegrityError for bytes that are not what they are named."""
    certified = certificate_in(store, bundle)
    config = bundle_config(store, bundle)
    for entry in certified.files:
        store.get_bytes(entry.sha256)
    if config.sweep.threads_per_evaluator:  # as the evaluators that measured
        torch.set_num_threads(config.sweep.threads_per_evaluator)
    say(f"{config.base.model} is loaded and digested")
    stacked = StackedBase.load(config.base, device)
    lines = [line("base", certified.base.digest, stacked.base.ref.digest)]
    if stacked.base.ref.digest != bundle.base.digest:
        return Recomputed(store.campaign, bundle.number, False, 0, tuple(lines))
    for ref in bundle.stacks:
        stacked.attach(store.manifest(ref.manifest), store)

    losses = bundle_losses(store, bundle)
    alone = [_alone(store, record, stacked, config, rows_each, say) for record in closings(store, bundle)]
    rows = {record.domain: DomainRows.of(record, store.get_bytes) for record in closings(store, bundle)}
    unowned = DomainRows.from_parquet(store.get_bytes(bundle.file(UNOWNED).sha256), "", {})
    table = sweep_table(store, bundle, [*rows.values(), unowned])
    unmeasured = _unmeasured(table, losses)
    say("sweep rows are scored")
    swept = [row for part in (*rows.values(), unowned) for row in part.sweep]
    scorer = Scorer(stacked, swept, table.domains, config.sweep.batch_tokens)
    rescored = _rescore(scorer, losses, rows_each)
    champion = _judged_against(store, bundle)
    served = champion and compare(store, champion, bundle, config.promotion.tolerance)
    now = certificate_of(store, bundle, config, losses, [domain.now for domain in alone], served)
    lines += dependencies(certified, now)
    lines += domains_alone(certified, alone)
    own = [row for domain in alone for row in domain.rescored]
    lines += scored_rows([*own, *rescored])
    lines += stored_numbers(certified, now, unmeasured)
    lines += statements(certified, now)
    if rows_each is None:
        say("the meta-router of each fold learns again, and its gates are compared")
        gates_BD = _gates(config, table, rows, unowned, encoder(stacked, config), scorer)
        lines += gates_again(_routed_again(scorer, losses, dict(zip(table.row_ids, gates_BD.tolist(), strict=True))))
    agrees = all(one.verdict != "differs" for one in lines)
    return Recomputed(store.campaign, bundle.number, agrees, len(own) + len(rescored), tuple(lines))


def _gates(
    config: CampaignConfig,
    table: OutcomeTable,
    rows: Mapping[str, DomainRows],
    unowned: DomainRows,
    encode: Encode,
    scorer: Scorer,
) -> np.ndarray:
    """The gate weights (B, D) of a meta-router which never saw it for each row of ``table``: the sweep rows of
    ``rows``, in the order of its domains, then the ``unowned``."""
    prompts = [
        prompt for part in (*(rows[domain] for domain in table.domains), unowned) for prompt in part.router_prompts
    ]
    states = encode(prompts, config.router.kind == "anchored")
    fold_B = deal_folds(table.row_ids, table.owners, table.domains, config.router.folds, config.seed)
    taught = sample_rows(table.row_ids, table.owners, config.router.learn_rows, config.seed)
    anchor = teach_anchor(config, table.domains, rows, encode)
    lessons = Lessons(
        table.subset(taught.tolist()), [states[row] for row in taught], anchor, config.router, config.seed
    )

    def score(row_N: np.ndarray, gates_ND: np.ndarray) -> np.ndarray:
        asked = [(lessons.table.row_ids[row], gates) for row, gates in zip(row_N, gates_ND.tolist(), strict=True)]
        return np.array([loss.nll for loss in scorer(asked)])

    judges = teach(lessons, fold_B[taught], np.unique(fold_B).tolist(), score).judges
    return judges.choose(states, table.owners, table.domains, fold_B).routed_BD


def certificate_in(store: Store, bundle: BundleManifest) -> Certificate:
    """The certificate that a bundle holds. Raises NotInStoreError where it holds none."""
    if not any(entry.name == CERTIFICATE for entry in bundle.files):
        raise NotInStoreError(f"bundle {bundle.number} has no certificate; the next bundle of the campaign has one")
    return Certificate.from_json(store.get_bytes(bundle.file(CERTIFICATE).sha256))


def _judged_against(store: Store, bundle: BundleManifest) -> BundleManifest | None:
    """The champion when the bundle was committed, by the store's history."""
    refs, own = [entry.ref for entry in store.history()], bundle_ref(bundle.number)
    before = sum(ref.startswith(PROMOTIONS) for ref in refs[: refs.index(own)])
    champion = standing(store.promotions()[:before], *store.out_of_date(store.live(before=own))).champion
    return None if champion is None else store.bundle(champion.manifest)


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
    validation = DomainRows.of(record, store.get_bytes).validation
    if len(validation) != len(record.row_losses):
        raise IntegrityError(
            f"domain {name} closed with {len(record.row_losses)} losses and holds {len(validation)} validation rows; "
            "repair the store"
        )
    tokens = [row.completion_length for row in validation]
    (stored,) = prove([record], {name: record.row_losses}, {name: tokens}, {name: record.probe})
    places = _spaced(range(len(validation)), rows_each)
    again = _score_alone(stacked, names, validation, places, config.training.eval_batch_tokens)
    then = [RowLoss(record.row_losses[i] * tokens[i], tokens[i]) for i in places]
    scored = dataclasses.replace(record, row_losses=tuple(record.row_losses[i] for i in places))
    means, counts = [loss.mean for loss in again], [loss.tokens for loss in again]
    probed = probe(stacked, names, probe_rows(validation))
    (now,) = prove([scored], {name: means}, {name: counts}, {name: probed})
    return Alone(stored, now, tuple(Rescored("isolated", name, *pair) for pair in zip(then, again, strict=True)))


def _score_alone(
    stacked: StackedBase, names: Sequence[str], rows: Sequence[EncodedRow], places: Sequence[int], batch_tokens: int
) -> list[RowLoss]:
    """Losses of the rows at ``places``, each among the rows that it shared a batch with at the domain's closing."""
    stacked.fire(names)
    found: dict[int, RowLoss] = {}
    for batch in plan_batches([len(row.input_ids) for row in rows], batch_tokens):
        if not set(places).isdisjoint(batch):
            found |= zip(batch, score_batch(stacked, [rows[place] for place in batch]), strict=True)
    stacked.fire(stacked.names)
    return [found[place] for place in places]


def sweep_table(store: Store, bundle: BundleManifest, parts: Sequence[DomainRows]) -> OutcomeTable:
    """The bundle's outcomes, in the order in which the campaign had them."""
    stored = OutcomeTable.from_arrow(pq.read_table(io.BytesIO(store.get_bytes(bundle.file(OUTCOMES).sha256))))
    rows = [row for part in parts for row in part.sweep]
    table = OutcomeTable([row.id for row in rows], [row.domain for row in rows], bundle.domains)
    table.update(stored)
    return table


def _unmeasured(table: OutcomeTable, losses: ModeLosses) -> list[str]:
    """Each row and fixed mode of which the sweep did not measure just the stored loss. What was served need be no
    outcome of the sweep: it is scored again instead."""
    place = {id: row for row, id in enumerate(table.row_ids)}
    row_B = np.array([place.get(id, 0) for id in losses.row_ids], dtype=np.int64)
    known_B = np.array([id in place for id in losses.row_ids])
    strange = []
    for mode, mask in (("base", 0), ("ungated", full_mask(len(table.domains)))):
        measured_B = np.where(known_B, table.nll(row_B, np.full(len(row_B), mask)), np.nan)
        stored_B = np.array(losses.nll.get(mode, [None] * len(row_B)), dtype=np.float64)
        strange += [f"{mode} of {losses.row_ids[row]}" for row in np.flatnonzero(measured_B != stored_B).tolist()]
    return strange


def _rescore(scorer: Scorer, losses: ModeLosses, rows_each: int | None) -> list[Rescored]:
    """Sweep rows under the base, under the gates that they are said to be served under, and foreign ones under all
    stacks; those modes of which a loss is stored."""
    count = len(scorer.domains)
    fixed = {"base": mask_weights(0, count), "ungated": mask_weights(full_mask(count), count)}
    wanted = [
        (mode, place, fixed.get(mode) or _stored_gates(losses, scorer.domains, place))
        for owner in dict.fromkeys(losses.owners)
        for place in _spaced([i for i, held in enumerate(losses.owners) if held == owner], rows_each)
        for mode in RESCORED
        if _is_stored(scorer, losses, mode, place) and (mode != "ungated" or group_of(owner) == FOREIGN)
    ]
    again = scorer([(losses.row_ids[place], gates) for _, place, gates in wanted])
    return [
        Rescored(mode, group_of(losses.owners[place]), _stored(losses, mode, place), loss)
        for (mode, place, _), loss in zip(wanted, again, strict=True)
    ]


def _routed_again(scorer: Scorer, losses: ModeLosses, gates: Mapping[str, Sequence[float]]) -> list[RoutedAgain]:
    """Every row that was served, and what it loses under ``gates`` by row id; scored where these are others than those
    that are stored."""
    served = [place for place in range(len(losses.row_ids)) if _is_stored(scorer, losses, SERVED, place)]
    ids = losses.row_ids
    moved = [place for place in served if list(gates[ids[place]]) != _stored_gates(losses, scorer.domains, place)]
    again = dict(zip(moved, scorer([(ids[place], gates[ids[place]]) for place in moved]), strict=True))
    found = []
    for place in served:
        stored = _stored(losses, SERVED, place)
        found.append(RoutedAgain(group_of(losses.owners[place]), stored, again.get(place, stored), place in again))
    return found


def _is_stored(scorer: Scorer, losses: ModeLosses, mode: str, place: int) -> bool:
    return losses.row_ids[place] in scorer.rows and mode in losses.nll and losses.nll[mode][place] is not None


def _stored_gates(losses: ModeLosses, domains: Sequence[str], place: int) -> list[float]:
    if absent := sorted(set(domains) - set(losses.gates)):
        raise IntegrityError(f"losses of the bundle lack the gate weights of {absent[0]}; repair the store")
    return [losses.gates[domain][place] for domain in domains]


def _stored(losses: ModeLosses, mode: str, place: int) -> RowLoss:
    nll = losses.nll[mode][place]
    assert nll is not None
    return RowLoss(nll, losses.tokens[place])


def _spaced(places: Sequence[int], count: int | None) -> list[int]:
    """At most ``count`` of the places, evenly spaced."""
    taken = len(places) if count is None else min(count, len(places))
    return [places[i * len(places) // taken] for i in range(taken)]
