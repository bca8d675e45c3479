"""What the refs of a campaign say, read so that a contradiction is an error and never a shorter history."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from bs_cluster.errors import IntegrityError, NotInStoreError
from bs_cluster.records import (
    CHALLENGER,
    CHAMPION,
    BundleManifest,
    DomainRecord,
    Erasure,
    Promotion,
    Retirement,
    StackManifest,
    StackRef,
)
from bs_cluster.retirement import Fact, Live, live
from bs_cluster.store.blobs import Blobs
from bs_cluster.store.history import History, HistoryEntry, entry_name
from bs_cluster.store.refs import (
    BUNDLES,
    DOMAINS,
    ERASURES,
    PROMOTIONS,
    RETIREMENTS,
    STACKS,
    Refs,
    bundle_ref,
    decode,
    domain_of,
    number_of,
    record,
    stack_of,
    stack_ref,
)

M = TypeVar("M", StackManifest, BundleManifest)


class Committed:
    """The commits of one campaign. Everything is read anew each time, by stamp, unless ``as_it_stands``; a manifest,
    whose name is its digest, once. All methods raise ``IntegrityError`` when ref, path, manifest and history do not
    agree, ``StoreError`` when one of them cannot be read."""

    def __init__(self, campaign: str, refs: Refs, history: History, blobs: Blobs):
        self.campaign = campaign
        self._refs = refs
        self._history = history
        self._blobs = blobs
        self._manifests: dict[str, Any] = {}
        self._standing: dict[str, dict[str, Any]] | None = None  # of one that reads no more

    def as_it_stands(self) -> Committed:
        """The commits as of now, whatever comes after."""
        reader = copy.copy(self)
        reader._standing = self.refs()
        return reader

    def refs(self) -> dict[str, dict[str, Any]]:
        """Every ref's content by name, in the order in which they were committed."""
        if self._standing is not None:
            return self._standing
        chain = self._history.entries()
        found = self._refs.all()
        if len(without_entry(found, chain)) > 1:
            chain = self._history.entries()  # others have committed since the first look
        loose = without_entry(found, chain)
        for entry in chain:
            if entry.ref not in found:
                raise IntegrityError(f"{entry.ref} is missing, {entry_name(entry.number)} has it; repair the store")
            if found[entry.ref] != entry.content:
                raise IntegrityError(
                    f"{entry.ref} is not what was committed, {entry_name(entry.number)} has another; repair the store"
                )
        if len(loose) > 1:
            raise IntegrityError(
                f"{', '.join(loose)} are in no entry of the history; a crash leaves out one at most: repair the store"
            )
        return {name: found[name] for name in [*(entry.ref for entry in chain), *loose]}

    def stacks(self) -> list[tuple[StackRef, StackManifest]]:
        """The live stacks, in the order in which stacks are fused: by (position, round)."""
        refs = self.refs()
        held = set(self._live(refs).stacks)
        return [pair for pair in self._stacks(refs) if pair[0] in held]

    def every_stack(self) -> list[tuple[StackRef, StackManifest]]:
        """Every stack that was ever committed, in the same order."""
        return self._stacks(self.refs())

    def domains(self) -> list[DomainRecord]:
        """The closing of every domain that is closed, in the order in which they closed."""
        return list(self.live().closings.values())

    def closings(self) -> list[tuple[str, DomainRecord]]:
        """Every closing that ever was, by the name of its ref and in the order in which they came."""
        refs = self.refs()
        return [(name, _closing(refs, name)) for name in refs if name.startswith(DOMAINS)]

    def closings_of(self, bundle: BundleManifest) -> list[DomainRecord]:
        """How each domain of a bundle had closed when it was committed, in the bundle's order."""
        refs = self.refs()
        until = bundle_ref(bundle.number)
        found: dict[str, DomainRecord] = {}
        for name in itertools.takewhile(lambda name: name != until, refs):
            if name.startswith(DOMAINS):
                found[domain_of(name)] = _closing(refs, name)
        return [found[domain] for domain in bundle.domains if domain in found]

    def live(self, before: str | None = None, then: Retirement | None = None) -> Live:
        """What is in force; or was, when the ref ``before`` had not yet been committed; or would be after ``then``."""
        return self._live(self.refs(), before, [] if then is None else [then])

    def retirements(self) -> list[Retirement]:
        """Every retirement, by number."""
        return [fact for fact in self._facts(self.refs()) if isinstance(fact, Retirement)]

    def erasures(self) -> list[Erasure]:
        """Every erasure, by number."""
        return [fact for fact in self._facts(self.refs()) if isinstance(fact, Erasure)]

    def _live(
        self, refs: Mapping[str, Mapping[str, Any]], before: str | None = None, then: Sequence[Fact] = ()
    ) -> Live:
        self._stacks(refs)  # so that each is what its manifest says
        return live([*self._facts(refs, before), *then])

    def _facts(self, refs: Mapping[str, Mapping[str, Any]], before: str | None = None) -> Iterator[Fact]:
        """What decides about the live, in the order of the commits."""
        for name, content in refs.items():
            if name == before:
                return
            if name.startswith(STACKS):
                yield record(StackRef, content, name)
            elif name.startswith(DOMAINS):
                yield _closing(refs, name)
            elif name.startswith((RETIREMENTS, ERASURES)):
                fact = record(Retirement if name.startswith(RETIREMENTS) else Erasure, content, name)
                if fact.number != number_of(name):
                    raise IntegrityError(f"{name} holds number {fact.number}; repair the store")
                yield fact

    def bundles(self) -> list[tuple[int, str, BundleManifest]]:
        """Every bundle as (number, manifest digest, manifest), by number."""
        refs = self.refs()
        held = {ref for ref, _ in self._stacks(refs)}
        found = []
        for name in (name for name in refs if name.startswith(BUNDLES)):
            number, digest = number_of(name), refs[name].get("manifest", "")
            if refs[name] != {"number": number, "manifest": digest}:
                raise IntegrityError(f"{name} is no ref of bundle {number}; repair the store")
            manifest = self.bundle(digest)
            if manifest.number != number:
                raise IntegrityError(f"{name} leads to the manifest of bundle {manifest.number}; repair the store")
            if foreign := [ref.stack.name for ref in manifest.stacks if ref not in held]:
                raise IntegrityError(f"bundle {number} names {', '.join(foreign)} as it was never committed here")
            found.append((number, digest, manifest))
        return sorted(found, key=lambda bundle: bundle[0])

    def promotions(self) -> list[Promotion]:
        """Every promotion, by number."""
        refs = self.refs()
        found = []
        for name in (name for name in refs if name.startswith(PROMOTIONS)):
            promotion = record(Promotion, refs[name], name)
            if promotion.number != number_of(name) or promotion.alias not in (CHAMPION, CHALLENGER):
                raise IntegrityError(
                    f"{name} is promotion {promotion.number}, to {promotion.alias!r}; repair the store"
                )
            if refs.get(bundle_ref(promotion.bundle), {}).get("manifest") != promotion.manifest:
                raise IntegrityError(f"{name} promotes bundle {promotion.bundle} as it was never committed here")
            found.append(promotion)
        return sorted(found, key=lambda promotion: promotion.number)

    def manifest(self, digest: str) -> StackManifest:
        return self._manifest(StackManifest, digest)

    def bundle(self, digest: str) -> BundleManifest:
        manifest = self._manifest(BundleManifest, digest)
        for ref in manifest.stacks:
            stack = self.manifest(ref.manifest)
            if (stack.stack, stack.base) != (ref.stack, manifest.base):
                raise IntegrityError(
                    f"bundle {manifest.number} names {ref.stack.name} on {manifest.base.model}, its manifest is of "
                    f"{stack.stack.name} on {stack.base.model}; serve another bundle"
                )
        return manifest

    def _stacks(self, refs: Mapping[str, Mapping[str, Any]]) -> list[tuple[StackRef, StackManifest]]:
        found: list[tuple[StackRef, StackManifest]] = []
        for name in (name for name in refs if name.startswith(STACKS)):
            ref = record(StackRef, refs[name], name)
            manifest = self.manifest(ref.manifest)
            if not ref.stack == manifest.stack == stack_of(name):
                raise IntegrityError(
                    f"{name} names {ref.stack.name} and leads to the manifest of {manifest.stack.name}; "
                    "repair the store"
                )
            self._check_parents(manifest, found)
            found.append((ref, manifest))
        return sorted(found, key=lambda pair: (pair[1].position, pair[1].stack.round))

    def _check_parents(self, manifest: StackManifest, before: list[tuple[StackRef, StackManifest]]) -> None:
        earlier = {ref for ref, _ in before}
        if foreign := [stack_ref(parent) for parent in manifest.parents if parent not in earlier]:
            raise IntegrityError(
                f"{manifest.stack.name} builds on {', '.join(foreign)}, which was not committed before it as it says; "
                "repair the store"
            )
        if before and (first := before[0][1]).base.digest != manifest.base.digest:
            raise IntegrityError(
                f"{manifest.stack.name} was trained on {manifest.base.model} ({manifest.base.digest[:12]}), "
                f"{first.stack.name} on {first.base.model} ({first.base.digest[:12]}); a campaign has one base"
            )

    def _manifest(self, kind: type[M], digest: str) -> M:
        if not isinstance(held := self._manifests.get(digest), kind):
            what = f"manifest {digest}"
            try:
                held = record(kind, decode(self._blobs.get_bytes(digest), what), what)
            except NotInStoreError as error:
                raise IntegrityError(f"{what} is missing; repair the store from a copy") from error
            if held.campaign != self.campaign:
                raise IntegrityError(f"{what} is of campaign {held.campaign!r}, this is the store of {self.campaign!r}")
            self._manifests[digest] = held
        return held


def _closing(refs: Mapping[str, Mapping[str, Any]], name: str) -> DomainRecord:
    found = record(DomainRecord, refs[name], name)
    if found.domain != domain_of(name):
        raise IntegrityError(f"{name} holds the record of domain {found.domain!r}; repair the store")
    return found


def without_entry(refs: Mapping[str, Any], chain: list[HistoryEntry]) -> list[str]:
    """Refs that the history does not have, in the order of their names."""
    known = {entry.ref for entry in chain}
    return [name for name in refs if name not in known]
