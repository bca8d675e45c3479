"""What a request to erase a retired domain deletes: the blobs that nothing but its retired stacks leads to.

The history is read through manifests and closing records, which hold digests and measured numbers and no row: those
stay, and say what was there. A basis that a kept domain was confined to stays as that domain's own.
"""

from __future__ import annotations

from collections.abc import Iterator

from bs_cluster.records import StackManifest
from bs_cluster.retirement import Live
from bs_cluster.store.committed import Committed


def only_of(committed: Committed, domain: str, now: Live) -> set[str]:
    """The digests that only the retired stacks of ``domain``, its closings that are not in force and the bundles which
    held those stacks lead to."""
    gone = {ref for ref in now.retired if ref.stack.domain == domain}
    wanted, kept = set(), set()
    for ref, manifest in committed.every_stack():
        kept.add(ref.manifest)
        (wanted if ref in gone else kept).update(_of_stack(manifest))
    for _, digest, bundle in committed.bundles():
        kept.add(digest)
        (kept if gone.isdisjoint(bundle.stacks) else wanted).update(entry.sha256 for entry in bundle.files)
    in_force = (now.closings.get(domain), now.reopened.get(domain))
    for _, record in committed.closings():
        over = record.domain == domain and record not in in_force
        (wanted if over else kept).update(record.blobs().values())
    return wanted - kept


def erased(committed: Committed) -> set[str]:
    """The digests of blobs that are to be missing: erased on request, and nothing that is kept leads to them."""
    now = committed.live()
    domains = {fact.domain for fact in now.erased.values()}
    led_to = set().union(*(only_of(committed, domain, now) for domain in domains))
    return led_to & now.erased.keys()


def _of_stack(manifest: StackManifest) -> Iterator[str]:
    yield from (entry.sha256 for entry in manifest.files)
    if manifest.basis is not None:
        yield manifest.basis
