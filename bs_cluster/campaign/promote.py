"""Who is served next: a new bundle against the champion, on the rows that both of their sweeps measured."""

from __future__ import annotations

from bs_cluster.config.schema import PromotionSection
from bs_cluster.failpoints import failpoint
from bs_cluster.promotion import LOSSES, TOLERANCE, Decision, ServedChange, decide, read_losses, served_change
from bs_cluster.records import BundleManifest, ModeLosses, Promotion
from bs_cluster.store import Store


def judge(
    store: Store, number: int, losses: ModeLosses, settings: PromotionSection
) -> tuple[ServedChange | None, Decision]:
    """What bundle ``number`` with these losses changes against the champion, and what the policy makes of it."""
    champion = store.standing().champion
    if champion is None:
        return None, decide(settings.policy, None)
    former = bundle_losses(store, store.bundle(champion.manifest))
    change = served_change(number, losses, champion.bundle, former, settings.tolerance)
    return change, decide(settings.policy, change)


def promote(store: Store, bundle: BundleManifest, settings: PromotionSection) -> Promotion:
    """The promotion of ``bundle`` that the policy decides, committed. One that was promoted before, by whomever, is
    not judged again."""
    earlier = [promotion for promotion in store.promotions() if promotion.bundle == bundle.number]
    if earlier:
        return earlier[-1]
    _, decision = judge(store, bundle.number, bundle_losses(store, bundle), settings)
    failpoint("bundle.promote")
    return store.promote(bundle.number, decision.alias, settings.policy, decision.reason)


def compare(store: Store, former: BundleManifest, bundle: BundleManifest, tolerance: float = TOLERANCE) -> ServedChange:
    """What serving ``bundle`` instead of ``former`` changes."""
    before, now = bundle_losses(store, former), bundle_losses(store, bundle)
    return served_change(bundle.number, now, former.number, before, tolerance)


def bundle_losses(store: Store, bundle: BundleManifest) -> ModeLosses:
    """A bundle's losses by row; none of one that was committed without them, which cannot be compared."""
    entry = next((entry for entry in bundle.files if entry.name == LOSSES), None)
    return ModeLosses((), (), (), {}) if entry is None else read_losses(store.get_bytes(entry.sha256))
