"""Who is served next: a new bundle against the champion, on the rows that both of their sweeps measured."""

from __future__ import annotations

from collections.abc import Collection

from bs_cluster.config.schema import PromotionSection
from bs_cluster.failpoints import failpoint
from bs_cluster.promotion import LOSSES, TOLERANCE, Decision, ServedChange, decide, read_losses, served_change
from bs_cluster.records import BundleManifest, ModeLosses, Promotion, StackRef
from bs_cluster.store import Store


def judge(
    store: Store, number: int, stacks: Collection[StackRef], losses: ModeLosses, settings: PromotionSection
) -> tuple[ServedChange | None, Decision]:
    """What bundle ``number`` of these ``stacks`` and losses changes against the champion, and what the policy makes of
    it."""
    champion, outdated = store.standing().champion, store.out_of_date()[0]
    if champion is None:
        return None, decide(settings.policy, None)
    former = store.bundle(champion.manifest)
    change = _change(store, former, number, stacks, losses, settings.tolerance)
    return change, decide(settings.policy, change, champion.bundle if champion.bundle in outdated else None)


def promote(store: Store, bundle: BundleManifest, settings: PromotionSection) -> Promotion:
    """The promotion of ``bundle`` that the policy decides, committed. One that was promoted before, by whomever, is
    not judged again, unless stacks were retired since from what was served instead."""
    earlier = [promotion for promotion in store.promotions() if promotion.bundle == bundle.number]
    champion, outdated = store.standing().champion, store.out_of_date()[0]
    replaces = champion is None or champion.bundle in outdated
    if earlier and not (replaces and outdated and settings.policy != "manual"):
        return earlier[-1]
    _, decision = judge(store, bundle.number, bundle.stacks, bundle_losses(store, bundle), settings)
    failpoint("bundle.promote")
    return store.promote(bundle.number, decision.alias, settings.policy, decision.reason)


def compare(store: Store, former: BundleManifest, bundle: BundleManifest, tolerance: float = TOLERANCE) -> ServedChange:
    """What serving ``bundle`` instead of ``former`` changes."""
    return _change(store, former, bundle.number, bundle.stacks, bundle_losses(store, bundle), tolerance)


def _change(
    store: Store,
    former: BundleManifest,
    number: int,
    stacks: Collection[StackRef],
    losses: ModeLosses,
    tolerance: float,
) -> ServedChange:
    """Rows of a domain whose stacks were retired since ``former`` count where both measured them; that they are gone is
    what was asked for, and nothing missing."""
    before, measured = bundle_losses(store, former), set(losses.row_ids)
    retired = {ref.stack.domain for ref in store.live().retired_of(former.stacks) if ref not in stacks}
    rows = zip(before.row_ids, before.owners, strict=True)
    counts = [row for row, (id, owner) in enumerate(rows) if owner not in retired or id in measured]
    return served_change(number, losses, former.number, before.select(counts), tolerance)


def bundle_losses(store: Store, bundle: BundleManifest) -> ModeLosses:
    """A bundle's losses by row; none of one that was committed without them, which cannot be compared."""
    entry = next((entry for entry in bundle.files if entry.name == LOSSES), None)
    return ModeLosses((), (), (), {}) if entry is None else read_losses(store.get_bytes(entry.sha256))
