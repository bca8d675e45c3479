"""One campaign's committed history: what it trained, in which order, and the bytes that prove it.

    <uri>/<campaign>/blobs/sha256/<2>/<64 hex>           immutable bytes, named by their SHA-256
    <uri>/<campaign>/refs/campaign.json                  who this campaign is
    <uri>/<campaign>/refs/stacks/<domain>/<round>.json   create-if-absent; its appearance IS the commit
    <uri>/<campaign>/refs/domains/<domain>/<number>.json create-if-absent; its appearance closes the domain
    <uri>/<campaign>/refs/bundles/<number>.json          create-if-absent
    <uri>/<campaign>/refs/promotions/<number>.json       create-if-absent; which bundle is served from then on
    <uri>/<campaign>/refs/retirements/<number>.json      create-if-absent; takes stacks out of what is live
    <uri>/<campaign>/refs/erasures/<number>.json         create-if-absent; names bytes that are deleted on request
    <uri>/<campaign>/refs/epochs/<number>.json           create-if-absent; the newest is the one writer
    <uri>/<campaign>/history/<n>.json                    create-if-absent; the refs in the order of their commits
    <uri>/<campaign>/rounds/<stack>/                     scratch: the state of a round that is under way
    <uri>/<campaign>/sweep/<digest>/part-*.parquet       scratch: outcomes of a sweep that is under way
    <uri>/<campaign>/tmp/                                files being written
    <uri>/<campaign>/aside/                              what a repair moved out of the way

What a crash may lose: the work since the last commit, never a commit and never half of one. Bytes are durable before
a manifest names them, the manifest before a ref does, and a ref appears whole; its entry in the history follows, and
the next writer adds one that is missing. Running the same commit again finishes it. The coordinator is the single
writer; readers need no lock. Where the store cannot be read, or contradicts itself, reading raises: an empty answer
means that nothing was committed.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bs_cluster.errors import IntegrityError, NotInStoreError, OutOfOrderError, StoreError
from bs_cluster.failpoints import failpoint
from bs_cluster.promotion import Standing, standing
from bs_cluster.records import (
    CHAMPION,
    SCHEMA_VERSION,
    BundleManifest,
    DomainRecord,
    Erasure,
    FileEntry,
    Promotion,
    Retirement,
    StackManifest,
    StackRef,
    sha256_hex,
)
from bs_cluster.retirement import Live, committed_rounds
from bs_cluster.store.adapter_check import check_adapter
from bs_cluster.store.blobs import BLOBS, Blobs, safe_name
from bs_cluster.store.collect import Collected, collect_garbage, collect_temporary
from bs_cluster.store.commits import Commits
from bs_cluster.store.committed import Committed
from bs_cluster.store.erase import erased, only_of
from bs_cluster.store.filesystem import TEMPORARY
from bs_cluster.store.hashing import stage_entries
from bs_cluster.store.history import History, HistoryEntry
from bs_cluster.store.refs import (
    CAMPAIGN,
    Refs,
    bundle_ref,
    domain_ref,
    encode,
    erasure_ref,
    promotion_ref,
    retirement_ref,
    stack_ref,
)
from bs_cluster.store.repair import Repaired, repair_campaign
from bs_cluster.store.round_area import RoundArea
from bs_cluster.store.stack_load import StoredStack, load_stack
from bs_cluster.store.sweep_area import SweepArea
from bs_cluster.store.uri import open_files
from bs_cluster.store.verify import Verified, verify_campaign

CACHE = Path("~/.cache/bs_cluster/store")
DAY = 86_400.0


class Store:
    """The store of one campaign.

    ``uri`` is a folder or an object store (``s3://…``, ``gs://…``); a folder is made absolute. ``cache`` keeps local
    copies of a remote store's large blobs. Nothing is created before the first write.
    """

    def __init__(self, uri: str, campaign: str, cache: Path = CACHE):
        self.campaign = campaign
        self.uri, self._files = open_files(uri, campaign)
        self._blobs = Blobs(self._files, cache.expanduser())
        self._refs = Refs(self._files)
        self._history = History(self._files)
        self._committed = Committed(campaign, self._refs, self._history, self._blobs)
        self._commits = Commits(campaign, self._files, self._refs, self._history, self._committed)

    def as_it_stands(self) -> Store:
        """This store for a reader who asks much at once: the history is read once, now, and what is committed later is
        not in it."""
        reader = copy.copy(self)
        reader._committed = self._committed.as_it_stands()
        return reader

    # Bytes

    def put_bytes(self, name: str, data: bytes) -> FileEntry:
        """Store ``data``; returns its entry under ``name``. Putting the same bytes again changes nothing."""
        return self._blobs.put_bytes(name, data)

    def put_file(self, path: Path, name: str | None = None) -> FileEntry:
        """Store the file at ``path`` under ``name`` (its own by default), streaming."""
        return self._blobs.put_file(path, name or path.name)

    def get_bytes(self, digest: str) -> bytes:
        """The blob with this SHA-256. Raises ``NotInStoreError``; ``IntegrityError`` when the bytes do not hash to
        it."""
        return self._blobs.get_bytes(digest)

    def load_stack(self, manifest: StackManifest) -> StoredStack:
        """A stack's configuration and tensors, from bytes that were hashed while they were read. Raises
        ``IntegrityError`` where they are not what the manifest names or no whole, finite stack."""
        return load_stack(manifest, self._blobs)

    def materialize(self, manifest: StackManifest, folder: Path) -> Path:
        """Write verified copies of a manifest's files into ``folder``, new or empty: what PEFT takes. Returns it."""
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(f"{folder} is not empty; name a new folder, so that it holds this stack alone")
        for entry in manifest.files:
            target = folder / safe_name(entry.name)
            data = self._blobs.get_entry(entry)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return folder

    # Stacks

    def upload_stack(self, directory: Path) -> tuple[FileEntry, ...]:
        """Verify the stack staged in ``directory`` (finite, complete) and store its files; the manifest's ``files``.

        What a worker does on its own node. Nothing is committed until ``publish_stack``.
        """
        failpoint("store.verify")
        check_adapter(directory)
        entries = stage_entries(directory)
        for entry in entries:
            self._blobs.put_entry(directory / safe_name(entry.name), entry)
        return entries

    def publish_stack(self, manifest: StackManifest, waits: bool = False) -> StackRef:
        """Freeze a stack whose files are in the store: the appearance of its ref is the commit. One that ``waits`` is
        of a closed domain, and live once a retirement of its rounds brings it in.

        Publishing the same manifest again is a no-op. Raises ``RefExistsError`` when this round is committed with
        another manifest, ``OutOfOrderError`` when its domain is closed, ``NotInStoreError`` when a parent or a file
        is not in the store.
        """
        label = manifest.stack.name
        data = encode(manifest, f"the manifest of {label}")
        ref = StackRef(stack=manifest.stack, manifest=sha256_hex(data))
        if self._commits.has(stack_ref(ref), ref.to_dict()):
            return ref
        self._check_campaign(manifest.campaign, label)
        self._check_place(manifest, waits)
        for entry in manifest.files:
            self._blobs.require(entry, label)
        self.put_bytes(f"{label}.json", data)
        self._commits.make(stack_ref(ref), ref.to_dict())
        return ref

    def commit_stack(self, manifest: StackManifest, directory: Path) -> StackRef:
        """``upload_stack`` and ``publish_stack`` in one, for a writer that does both.

        Raises as they do, and ``IntegrityError`` when the staged files are not those of ``manifest``. Committing the
        same manifest again is a no-op, even when the staged folder is gone.
        """
        data = encode(manifest, f"the manifest of {manifest.stack.name}")
        ref = StackRef(stack=manifest.stack, manifest=sha256_hex(data))
        if self._commits.has(stack_ref(ref), ref.to_dict()):
            return ref
        self._check_campaign(manifest.campaign, manifest.stack.name)
        self._check_place(manifest, waits=False)
        self._check_staged(manifest, directory)
        self.upload_stack(directory)
        return self.publish_stack(manifest)

    def stacks(self) -> list[tuple[StackRef, StackManifest]]:
        """The live stacks, which are the committed ones less those that were retired since, in the order in which they
        are fused: by (position, round)."""
        return self._committed.stacks()

    def every_stack(self) -> list[tuple[StackRef, StackManifest]]:
        """Every stack that was ever committed, retired or not, in the same order."""
        return self._committed.every_stack()

    def manifest(self, digest: str) -> StackManifest:
        return self._committed.manifest(digest)

    # Domains

    def close_domain(self, record: DomainRecord) -> None:
        """Close a domain: no further round of it may commit. Raises ``StoreError`` when the record's committed rounds
        are not the live ones, ``RefExistsError`` when the domain is closed with another record."""
        earlier = [other for _, other in self._committed.closings() if other.domain == record.domain]
        closed = record.domain in self.live().closings
        name = domain_ref(record.domain, len(earlier) + (0 if closed else 1))
        content = json.loads(encode(record, f"the record of domain {record.domain}"))
        if self._commits.has(name, content):
            return
        said = committed_rounds(record)
        held = {ref for ref, _ in self.stacks() if ref.stack.domain == record.domain}
        if said != held:
            raise StoreError(
                f"the record of domain {record.domain} says that {_stack_names(said)} are committed, the store holds "
                f"{_stack_names(held)}; build the record from Store.stacks()"
            )
        for what, digest in record.blobs().items():
            if not self._blobs.exists(digest):
                raise NotInStoreError(f"the {what} {digest} of domain {record.domain}: not in the store; put it there")
        self._commits.make(name, content)

    def domains(self) -> list[DomainRecord]:
        """Every closed domain, in the order in which they closed."""
        return self._committed.domains()

    def closings(self) -> list[DomainRecord]:
        """Every closing that ever was, in force or not, in the order in which they came."""
        return [record for _, record in self._committed.closings()]

    def closings_of(self, bundle: BundleManifest) -> list[DomainRecord]:
        """How each domain of a bundle had closed when the bundle was committed, in its order."""
        return self._committed.closings_of(bundle)

    # What is taken out

    def live(self, before: str | None = None, then: Retirement | None = None) -> Live:
        """What is in force; or was, before the ref of this name was committed; or would be after ``then``."""
        return self._committed.live(before, then)

    def retire(self, retirement: Retirement) -> None:
        """Take stacks out of what is live. Raises ``StoreError`` where one of them is not, ``RefExistsError`` when
        another retirement has that number."""
        name, content = retirement_ref(retirement.number), retirement.to_dict()
        if self._commits.has(name, content):
            return
        held = set(self.live().stacks)
        if gone := _stack_names(ref for ref in retirement.stacks if ref not in held):
            raise StoreError(f"{', '.join(gone)} cannot be retired: not among the campaign's live stacks")
        self.live(then=retirement)  # what cannot be said is not committed
        self._commits.make(name, content)

    def retirements(self) -> list[Retirement]:
        """Every retirement, first to last."""
        return self._committed.retirements()

    def erasures(self) -> list[Erasure]:
        """Every erasure, first to last."""
        return self._committed.erasures()

    def erasable(self, domain: str, then: Retirement | None = None) -> dict[str, int]:
        """What ``erase`` would delete, after the retirement ``then``: size in bytes by digest."""
        led_to = only_of(self._committed, domain, self.live(then=then))
        sizes = {digest: self._blobs.size(digest) for digest in sorted(led_to)}
        return {digest: size for digest, size in sizes.items() if size is not None}

    def erased(self) -> set[str]:
        """The digests of blobs that are to be missing: erased on request, and nothing that is kept leads to them."""
        return erased(self._committed)

    def erase(self, domain: str, reason: str, when: str) -> Erasure | None:
        """Delete the bytes that only the retired stacks of ``domain`` lead to: the fact first, then the bytes, so that
        one that was interrupted is finished by the same call. Returns the newest erasure of the domain, None where
        there never was anything to erase."""
        if found := self.erasable(domain):
            earlier = self.live().erased
            if fresh := {digest: size for digest, size in found.items() if digest not in earlier}:
                retired = tuple(ref for ref in self.live().retired if ref.stack.domain == domain)
                number = len(self.erasures()) + 1
                erasure = Erasure(SCHEMA_VERSION, number, domain, retired, fresh, reason, when)
                self._commits.make(erasure_ref(number), erasure.to_dict())
            for digest in found:
                self._blobs.erase(digest)
        return next((fact for fact in reversed(self.erasures()) if fact.domain == domain), None)

    # Bundles

    def commit_bundle(self, manifest: BundleManifest) -> int:
        """Commit a bundle whose files are already blobs; returns its number. Idempotent like ``commit_stack``."""
        label = f"bundle {manifest.number}"
        data = encode(manifest, f"the manifest of {label}")
        name, ref = bundle_ref(manifest.number), {"number": manifest.number, "manifest": sha256_hex(data)}
        if self._commits.has(name, ref):
            return manifest.number
        self._check_campaign(manifest.campaign, label)
        for stack in manifest.stacks:
            self._require_live(stack, label)
        for entry in manifest.files:
            self._blobs.require(entry, label)
        self.put_bytes(f"bundle-{manifest.number}.json", data)
        self._commits.make(name, ref)
        return manifest.number

    def bundles(self) -> list[tuple[int, str, BundleManifest]]:
        """Every bundle as (number, manifest digest, manifest), by number."""
        return self._committed.bundles()

    def bundle(self, digest: str) -> BundleManifest:
        """A bundle by its manifest's digest. Raises ``IntegrityError`` unless each of its stacks is what it says."""
        return self._committed.bundle(digest)

    # Who is served

    def promote(self, bundle: int, alias: str, by: str, reason: str) -> Promotion:
        """Make a committed bundle champion or challenger; a promotion after the last one. Raises ``NotInStoreError``
        for a bundle that is not committed, ``RefExistsError`` when another writer promotes at the same time."""
        held = {number: (digest, manifest) for number, digest, manifest in self.bundles()}
        if bundle not in held:
            raise NotInStoreError(f"bundle {bundle} is not committed in campaign {self.campaign}; commit it first")
        (digest, manifest), now = held[bundle], self.live()
        if alias == CHAMPION and (gone := now.retired_of(manifest.stacks)):
            raise StoreError(
                f"bundle {bundle} holds {gone[0].stack.name}, which was retired ({now.retired[gone[0]].reason}); "
                "promote a bundle without it"
            )
        number = len(self.promotions()) + 1
        promotion = Promotion(SCHEMA_VERSION, number, bundle, digest, alias, by, reason)
        self._commits.make(promotion_ref(number), promotion.to_dict())
        return promotion

    def promotions(self) -> list[Promotion]:
        """Every promotion, first to last."""
        return self._committed.promotions()

    def standing(self) -> Standing:
        """Who is champion, who was before, and who is challenger. A bundle with a stack that was retired is none of
        them any more, but for the champion, which stays until one follows it, unless the retirement withdrew it."""
        return standing(self.promotions(), *self.out_of_date())

    def out_of_date(self, now: Live | None = None) -> tuple[frozenset[int], frozenset[int]]:
        """The numbers of the bundles with a retired stack, and of those among them that are withdrawn, by what is in
        force, or was or will be."""
        now, bundles = now or self.live(), self.bundles()
        outdated = frozenset(number for number, _, bundle in bundles if now.retired_of(bundle.stacks))
        return outdated, frozenset(n for n, _, bundle in bundles if not now.withdrawn.isdisjoint(bundle.stacks))

    # The campaign itself

    def pin_identity(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``identity`` if the campaign has none; returns the identity that the store holds, yours or not.

        Raises ``IntegrityError`` when there are blobs but no ref at all: a history that was lost is not a new one.
        """
        if not self._refs.exists(CAMPAIGN):
            if not self._committed.refs() and self._files.stamps(BLOBS):
                raise IntegrityError(
                    f"campaign {self.campaign} in {self.uri} has blobs but no refs: its history was lost; restore "
                    "refs/ and history/ from a copy, or name another campaign"
                )
            self._refs.create_or_keep(CAMPAIGN, identity)
        held = self._refs.read(CAMPAIGN)
        self._commits.complete_history()
        return held

    def take_epoch(self) -> int:
        """Become the campaign's writer: from now on every older one is refused. Returns the epoch, from 1.

        Commits of this object check it. Collects what writers before left half written, if older than a day.
        """
        number = self._commits.take_epoch()
        self.collect_temporary()
        return number

    def check_epoch(self, number: int) -> None:
        """Raises ``FencedError`` when another writer has taken over since epoch ``number`` was taken."""
        self._commits.check_epoch(number)

    def history(self) -> list[HistoryEntry]:
        """Every commit, closing, bundle and promotion in the order in which they came. Raises ``IntegrityError`` when
        the chain is broken or the refs are not what it says."""
        self._committed.refs()
        return self._history.entries()

    def round_area(self, stack: str) -> RoundArea:
        """Scratch space for the round that trains ``stack``. Safe to delete: a round then begins anew."""
        return RoundArea(self._files, f"rounds/{safe_name(stack)}")

    def clear_rounds(self, under_way: str | None = None) -> None:
        """Deletes the scratch space of every round but the one ``under_way``: the others are over."""
        for stack in sorted({name.split("/")[1] for name in self._files.stamps("rounds")} - {under_way}):
            self.round_area(stack).clear()

    def sweep_area(self, digest: str) -> SweepArea:
        """Scratch space for the sweep with this digest. Safe to delete: a sweep measures again what is missing."""
        return SweepArea(self._files, f"sweep/{digest}")

    def probe(self) -> None:
        """Write a file, and have it refused a second time: what commits need. Raises ``StoreError``."""
        name = f"{TEMPORARY}/probe-{uuid.uuid4().hex}"
        try:
            created = [self._files.create(name, writer) for writer in (b"first", b"second")]
        finally:
            self._files.delete(name)
        if created != [True, False]:
            raise StoreError(f"{self.uri} creates a name that is there already; use another service or a POSIX volume")

    def verify(self) -> Verified:
        """Re-hash all that any ref leads to, and hold refs, records, manifests and history against each other."""
        return verify_campaign(self.campaign, self._files)

    def repair(self, copy: Store | None = None) -> Repaired:
        """Mend what intact parts, or an intact second copy of this campaign, leave no doubt about; never guess.

        What does not belong is moved to ``aside/``. Run it while nothing writes.
        """
        return repair_campaign(self.campaign, self._files, None if copy is None else copy._files)

    def gc(self, older_than_s: float = 7 * DAY) -> Collected:
        """Delete blobs that nothing committed leads to and interrupted writes, if older than this.

        A put makes a blob young, so an age above the longest round keeps what any commit under way has staged.
        Raises ``IntegrityError``, and deletes nothing, when the history cannot be read whole.
        """
        return collect_garbage(self._committed, self._files, older_than_s)

    def collect_temporary(self, older_than_s: float = DAY) -> list[str]:
        """Delete what interrupted writes left behind, if older than this; returns the names."""
        return collect_temporary(self._files, older_than_s)

    # Checks

    def _check_campaign(self, campaign: str, what: str) -> None:
        if campaign != self.campaign:
            raise StoreError(f"{what} belongs to campaign {campaign!r}, this is the store of {self.campaign!r}")

    def _check_place(self, manifest: StackManifest, waits: bool) -> None:
        domain = manifest.stack.domain
        now = self.live()
        if waits and domain not in now.closings:
            raise OutOfOrderError(f"{manifest.stack.name} cannot wait: domain {domain} is not closed")
        if domain in now.closings and not waits:
            raise OutOfOrderError(
                f"{manifest.stack.name} cannot be committed: domain {domain} is closed; "
                "teach it more as a new domain of the curriculum, or domains replace"
            )
        if domain in now.gone:
            raise OutOfOrderError(f"{manifest.stack.name} cannot be committed: domain {domain} was removed")
        if manifest.schema_version != SCHEMA_VERSION:
            raise StoreError(
                f"{manifest.stack.name} has schema version {manifest.schema_version}, not {SCHEMA_VERSION}"
            )
        for ref, other in self.stacks()[:1]:
            if other.base.digest != manifest.base.digest:
                raise StoreError(
                    f"{manifest.stack.name} was trained on {manifest.base.model} ({manifest.base.digest[:12]}), "
                    f"{ref.stack.name} on {other.base.model} ({other.base.digest[:12]}); a campaign has one base"
                )
        if manifest.basis is not None and not self._blobs.exists(manifest.basis):
            raise NotInStoreError(f"{manifest.stack.name} names the basis {manifest.basis}, which the store has not")
        for parent in manifest.parents:
            self._require_live(parent, manifest.stack.name)

    def _check_staged(self, manifest: StackManifest, directory: Path) -> None:
        said, staged = set(manifest.files), set(stage_entries(directory))
        if said != staged:
            raise IntegrityError(
                f"{directory} is not what the manifest of {manifest.stack.name} names; "
                f"only in the manifest: {_file_names(said - staged)}; only staged: {_file_names(staged - said)}"
            )

    def _require_live(self, ref: StackRef, wanted_by: str) -> None:
        name = stack_ref(ref)
        if not self._refs.exists(name):
            raise NotInStoreError(f"{wanted_by} builds on {ref.stack.name}, which is not committed; commit it first")
        if (held := self._refs.read(name).get("manifest")) != ref.manifest:
            raise StoreError(
                f"{wanted_by} builds on {ref.stack.name} with manifest {ref.manifest}, the store holds {held}; "
                "parents are taken from Store.stacks()"
            )
        now = self.live()
        if ref in now.retired:
            raise StoreError(f"{wanted_by} builds on {ref.stack.name}, which was retired: {now.retired[ref].reason}")
        if ref in now.waiting:
            raise StoreError(f"{wanted_by} builds on {ref.stack.name}, which never took its rounds' place")


def _stack_names(refs: Iterable[StackRef]) -> list[str]:
    return sorted(f"{ref.stack.name} ({ref.manifest[:12]})" for ref in refs)


def _file_names(entries: Iterable[FileEntry]) -> list[str]:
    return sorted(f"{entry.name} ({entry.sha256[:12]}, {entry.size} bytes)" for entry in entries)
