"""The audit: every ref leads to a whole manifest, and every manifest to whole blobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeVar

from bs_cluster.errors import StoreError
from bs_cluster.records import BundleManifest, DomainRecord, FileEntry, Record, StackManifest, StackRef
from bs_cluster.store.blobs import Blobs
from bs_cluster.store.refs import BUNDLES, CAMPAIGN, DOMAINS, STACKS, Refs, bundle_ref, domain_ref, stack_ref

R = TypeVar("R", bound=Record)


def verify_campaign(refs: Refs, blobs: Blobs) -> list[str]:
    """One line per problem, in the order of the refs; each blob is hashed once."""
    audit = _Audit(refs, blobs)
    problems = [] if refs.exists(CAMPAIGN) else [f"{CAMPAIGN} is missing: no campaign has claimed this store"]
    for folder, check in ((STACKS, audit.stack), (DOMAINS, audit.domain), (BUNDLES, audit.bundle)):
        for name in refs.names(folder):
            problems.extend(f"{name}: {problem}" for problem in _problems_of(check, name))
    return problems


def _problems_of(check, name: str) -> Iterator[str]:
    try:
        yield from check(name)
    except (StoreError, KeyError, ValueError) as error:
        yield str(error)


class _Audit:
    def __init__(self, refs: Refs, blobs: Blobs):
        self._refs = refs
        self._blobs = blobs
        self._sizes: dict[str, int | str] = {}  # digest -> size, or what is wrong with the blob

    def stack(self, name: str) -> Iterator[str]:
        ref = StackRef.from_dict(self._refs.read(name))
        manifest = self._manifest(ref.manifest, StackManifest)
        if stack_ref(ref) != name or manifest.stack != ref.stack:
            yield f"points to the manifest of {manifest.stack.name}"
        yield from self._stacks(manifest.parents)
        yield from self._files(manifest.files)

    def domain(self, name: str) -> Iterator[str]:
        record = DomainRecord.from_dict(self._refs.read(name))
        if domain_ref(record.domain) != name:
            yield f"holds the record of {record.domain}"
        committed = [outcome for outcome in record.rounds if outcome.committed]
        yield from self._stacks(StackRef(outcome.stack, outcome.manifest or "") for outcome in committed)
        if record.basis is not None and isinstance(problem := self._blob(record.basis), str):
            yield f"basis: {problem}"
        if isinstance(problem := self._blob(record.rows), str):
            yield f"rows: {problem}"

    def bundle(self, name: str) -> Iterator[str]:
        manifest = self._manifest(self._refs.read(name)["manifest"], BundleManifest)
        if bundle_ref(manifest.number) != name:
            yield f"points to the manifest of bundle {manifest.number}"
        yield from self._stacks(manifest.stacks)
        yield from self._files(manifest.files)

    def _manifest(self, digest: str, kind: type[R]) -> R:
        return kind.from_dict(json.loads(self._blobs.get_bytes(digest)))

    def _stacks(self, stacks) -> Iterator[str]:
        for ref in stacks:
            if not self._refs.exists(stack_ref(ref)):
                yield f"names {ref.stack.name}, which is not committed"
            elif (held := self._refs.read(stack_ref(ref)).get("manifest")) != ref.manifest:
                yield f"names {ref.stack.name} with manifest {ref.manifest}, committed is {held}"

    def _files(self, files: tuple[FileEntry, ...]) -> Iterator[str]:
        for entry in files:
            found = self._blob(entry.sha256)
            if isinstance(found, str):
                yield f"{entry.name}: {found}"
            elif found != entry.size:
                yield f"{entry.name}: {entry.size} bytes in the manifest, the blob has {found}"

    def _blob(self, digest: str) -> int | str:
        """The blob's size in bytes, or a sentence saying what is wrong with it."""
        if digest not in self._sizes:
            try:
                self._sizes[digest] = self._blobs.check(digest)
            except StoreError as error:
                self._sizes[digest] = str(error)
        return self._sizes[digest]
