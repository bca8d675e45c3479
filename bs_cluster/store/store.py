"""One campaign's committed history: what it trained, in which order, and the bytes that prove it.

    <uri>/<campaign>/blobs/sha256/<2>/<64 hex>           immutable bytes, named by their SHA-256
    <uri>/<campaign>/refs/campaign.json                  who this campaign is
    <uri>/<campaign>/refs/stacks/<domain>/<round>.json   create-if-absent; its appearance IS the commit
    <uri>/<campaign>/refs/domains/<domain>.json          create-if-absent; its appearance closes the domain
    <uri>/<campaign>/refs/bundles/<number>.json          create-if-absent
    <uri>/<campaign>/rounds/<stack>/                     scratch: the state of a round that is under way
    <uri>/<campaign>/sweep/<digest>/part-*.parquet       scratch: outcomes of a sweep that is under way
    <uri>/<campaign>/views/<digest>/                     hard links to blobs, laid out as a PEFT adapter
    <uri>/<campaign>/tmp/                                files being written

What a crash may lose: the work since the last commit, never a commit and never half of one. Bytes are durable before
a manifest names them, the manifest before a ref does, and a ref appears whole. Running the same commit again finishes
it. The coordinator is the single writer; readers need no lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bs_cluster.errors import IntegrityError, NotInStoreError, OutOfOrderError, StoreError
from bs_cluster.records import (
    BundleManifest,
    DomainRecord,
    FileEntry,
    StackManifest,
    StackRef,
    canonical_json,
    sha256_hex,
)
from bs_cluster.store.adapter_check import check_adapter
from bs_cluster.store.blobs import Blobs, safe_name
from bs_cluster.store.filesystem import TEMPORARY, open_files
from bs_cluster.store.hashing import stage_entries
from bs_cluster.store.refs import BUNDLES, CAMPAIGN, DOMAINS, STACKS, Refs, bundle_ref, domain_ref, encode, stack_ref
from bs_cluster.store.round_area import RoundArea
from bs_cluster.store.sweep_area import SweepArea
from bs_cluster.store.verify import verify_campaign

CACHE = Path("~/.cache/bs_cluster/store")


class Store:
    """The store of one campaign.

    ``uri`` is a folder or any pyarrow filesystem URI (``s3://…``, ``gs://…``, ``fsspec+memory://…``); a folder is
    made absolute. ``cache`` keeps local copies of a remote store's blobs. Nothing is created before the first write.
    """

    def __init__(self, uri: str, campaign: str, cache: Path = CACHE):
        self.campaign = campaign
        self.uri, self._files = open_files(uri, campaign)
        self._blobs = Blobs(self._files, cache.expanduser())
        self._refs = Refs(self._files)

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

    def local_file(self, entry: FileEntry) -> Path:
        """A local path with the entry's bytes, read-only by agreement: the blob itself in a local store, else a
        verified copy in the cache."""
        return self._blobs.local_file(entry)

    def materialize(self, manifest: StackManifest) -> Path:
        """A folder that ``PeftModel.from_pretrained`` takes, named by the manifest's digest and verified when it is
        first made. It holds links to the blobs: do not write into it."""
        return self._blobs.materialize(manifest)

    # Stacks

    def upload_stack(self, directory: Path) -> tuple[FileEntry, ...]:
        """Verify the stack staged in ``directory`` (finite, complete) and store its files; the manifest's ``files``.

        What a worker does on its own node. Nothing is committed until ``publish_stack``.
        """
        check_adapter(directory)
        entries = stage_entries(directory)
        for entry in entries:
            self._blobs.put_entry(directory / safe_name(entry.name), entry)
        return entries

    def publish_stack(self, manifest: StackManifest) -> StackRef:
        """Freeze a stack whose files are in the store: the appearance of its ref is the commit.

        Publishing the same manifest again is a no-op. Raises ``RefExistsError`` when this round is committed with
        another manifest, ``OutOfOrderError`` when its domain is closed, ``NotInStoreError`` when a parent or a file
        is not in the store.
        """
        label = manifest.stack.name
        data = encode(manifest, f"the manifest of {label}")
        ref = StackRef(stack=manifest.stack, manifest=sha256_hex(data))
        if self._refs.has(stack_ref(ref), ref.to_dict()):
            return ref
        self._check_campaign(manifest.campaign, label)
        self._check_place(manifest)
        for entry in manifest.files:
            self._blobs.require(entry, label)
        self.put_bytes(f"{label}.json", data)
        self._refs.create(stack_ref(ref), ref.to_dict())
        return ref

    def commit_stack(self, manifest: StackManifest, directory: Path) -> StackRef:
        """``upload_stack`` and ``publish_stack`` in one, for a writer that does both.

        Raises as they do, and ``IntegrityError`` when the staged files are not those of ``manifest``. Committing the
        same manifest again is a no-op, even when the staged folder is gone.
        """
        data = encode(manifest, f"the manifest of {manifest.stack.name}")
        ref = StackRef(stack=manifest.stack, manifest=sha256_hex(data))
        if self._refs.has(stack_ref(ref), ref.to_dict()):
            return ref
        self._check_campaign(manifest.campaign, manifest.stack.name)
        self._check_place(manifest)
        self._check_staged(manifest, directory)
        self.upload_stack(directory)
        return self.publish_stack(manifest)

    def stacks(self) -> list[tuple[StackRef, StackManifest]]:
        """Every committed stack, in the order in which stacks are fused: by (position, round)."""
        refs = [StackRef.from_dict(self._refs.read(name)) for name in self._refs.names(STACKS)]
        found = [(ref, self.manifest(ref.manifest)) for ref in refs]
        return sorted(found, key=lambda pair: (pair[1].position, pair[1].stack.round))

    def manifest(self, digest: str) -> StackManifest:
        return StackManifest.from_dict(json.loads(self.get_bytes(digest)))

    # Domains

    def close_domain(self, record: DomainRecord) -> None:
        """Close a domain: no further round of it may commit. Raises ``StoreError`` when the record's committed rounds
        are not the store's, ``RefExistsError`` when the domain is closed with another record."""
        name, content = domain_ref(record.domain), json.loads(encode(record, f"the record of domain {record.domain}"))
        if self._refs.has(name, content):
            return
        said = {StackRef(outcome.stack, outcome.manifest or "") for outcome in record.rounds if outcome.committed}
        held = {ref for ref, _ in self.stacks() if ref.stack.domain == record.domain}
        if said != held:
            raise StoreError(
                f"the record of domain {record.domain} says that {_stack_names(said)} are committed, the store holds "
                f"{_stack_names(held)}; build the record from Store.stacks()"
            )
        if record.basis is not None and not self._blobs.exists(record.basis):
            raise NotInStoreError(f"basis {record.basis} of domain {record.domain} is not in the store; put_file it")
        if not self._blobs.exists(record.rows):
            raise NotInStoreError(f"the rows {record.rows} of domain {record.domain} are not in the store; put them")
        self._refs.create(name, content)

    def domains(self) -> list[DomainRecord]:
        """Every closed domain, by position."""
        records = [DomainRecord.from_dict(self._refs.read(name)) for name in self._refs.names(DOMAINS)]
        return sorted(records, key=lambda record: record.position)

    # Bundles

    def commit_bundle(self, manifest: BundleManifest) -> int:
        """Commit a bundle whose files are already blobs; returns its number. Idempotent like ``commit_stack``."""
        label = f"bundle {manifest.number}"
        data = encode(manifest, f"the manifest of {label}")
        name, ref = bundle_ref(manifest.number), {"number": manifest.number, "manifest": sha256_hex(data)}
        if self._refs.has(name, ref):
            return manifest.number
        self._check_campaign(manifest.campaign, label)
        for stack in manifest.stacks:
            self._require_stack(stack, label)
        for entry in manifest.files:
            self._blobs.require(entry, label)
        self.put_bytes(f"bundle-{manifest.number}.json", data)
        self._refs.create(name, ref)
        return manifest.number

    def bundles(self) -> list[tuple[int, str, BundleManifest]]:
        """Every bundle as (number, manifest digest, manifest), by number."""
        refs = [self._refs.read(name) for name in self._refs.names(BUNDLES)]
        found = [(ref["number"], ref["manifest"], self.bundle(ref["manifest"])) for ref in refs]
        return sorted(found, key=lambda bundle: bundle[0])

    def bundle(self, digest: str) -> BundleManifest:
        return BundleManifest.from_dict(json.loads(self.get_bytes(digest)))

    # The campaign itself

    def pin_identity(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``identity`` if the campaign has none; returns the identity that the store holds, yours or not."""
        if not self._refs.exists(CAMPAIGN):
            self._files.create(CAMPAIGN, canonical_json(identity))
        return self._refs.read(CAMPAIGN)

    def round_area(self, stack: str) -> RoundArea:
        """Scratch space for the round that trains ``stack``. Safe to delete: a round then begins anew."""
        return RoundArea(self._files, f"rounds/{safe_name(stack)}")

    def rounds(self) -> list[str]:
        """Stacks that have something in their round's scratch space."""
        return sorted({name.split("/")[1] for name in self._files.names("rounds")})

    def sweep_area(self, digest: str) -> SweepArea:
        """Scratch space for the sweep with this digest. Safe to delete: a sweep measures again what is missing."""
        return SweepArea(self._files, f"sweep/{digest}")

    def verify(self) -> list[str]:
        """Follow every ref to its manifest and re-hash every blob on the way; one line per problem, none when sound."""
        return verify_campaign(self._refs, self._blobs)

    def collect_temporary(self, older_than_s: float = 86_400) -> list[str]:
        """Delete what interrupted writes left behind, if older than this; returns the names."""
        stray = [name for name in self._files.names(TEMPORARY) if self._files.age_seconds(name) >= older_than_s]
        for name in stray:
            self._files.delete(name)
        return stray

    # Checks

    def _check_campaign(self, campaign: str, what: str) -> None:
        if campaign != self.campaign:
            raise StoreError(f"{what} belongs to campaign {campaign!r}, this is the store of {self.campaign!r}")

    def _check_place(self, manifest: StackManifest) -> None:
        domain = manifest.stack.domain
        if self._refs.exists(domain_ref(domain)):
            raise OutOfOrderError(
                f"{manifest.stack.name} cannot be committed: domain {domain} is closed; "
                "teach it more as a new domain of the curriculum"
            )
        for parent in manifest.parents:
            self._require_stack(parent, manifest.stack.name)

    def _check_staged(self, manifest: StackManifest, directory: Path) -> None:
        said, staged = set(manifest.files), set(stage_entries(directory))
        if said != staged:
            raise IntegrityError(
                f"{directory} is not what the manifest of {manifest.stack.name} names; "
                f"only in the manifest: {_file_names(said - staged)}; only staged: {_file_names(staged - said)}"
            )

    def _require_stack(self, ref: StackRef, wanted_by: str) -> None:
        name = stack_ref(ref)
        if not self._refs.exists(name):
            raise NotInStoreError(f"{wanted_by} builds on {ref.stack.name}, which is not committed; commit it first")
        if (held := self._refs.read(name)["manifest"]) != ref.manifest:
            raise StoreError(
                f"{wanted_by} builds on {ref.stack.name} with manifest {ref.manifest}, the store holds {held}; "
                "parents are taken from Store.stacks()"
            )


def _stack_names(refs: Iterable[StackRef]) -> list[str]:
    return sorted(f"{ref.stack.name} ({ref.manifest[:12]})" for ref in refs)


def _file_names(entries: Iterable[FileEntry]) -> list[str]:
    return sorted(f"{entry.name} ({entry.sha256[:12]}, {entry.size} bytes)" for entry in entries)
