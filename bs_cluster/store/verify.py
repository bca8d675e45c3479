"""The audit: every byte is hashed, and refs, history, records and manifests are held against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bs_cluster.errors import IntegrityError, NotInStoreError, StoreError
from bs_cluster.records import DomainRecord, Record, StackManifest
from bs_cluster.store.blobs import BLOBS, DIGEST, Blobs, blob_name
from bs_cluster.store.committed import Committed
from bs_cluster.store.erase import erased
from bs_cluster.store.filesystem import LocalFiles
from bs_cluster.store.history import HISTORY, History, HistoryEntry, entry_name, is_entry
from bs_cluster.store.refs import (
    BUNDLES,
    CAMPAIGN,
    DOMAINS,
    PROMOTIONS,
    REFS,
    STACKS,
    Refs,
    is_committed,
    is_epoch,
    number_of,
    record,
)
from bs_cluster.store.remote import RemoteFiles

_WAYS_OUT = {
    "missing": "repair, from a copy where nothing intact here says what it was",
    "damaged": "repair, from a copy where nothing intact here says what it was",
    "planted": "repair moves it to aside/",
    "disagrees": "repair, from a copy where nothing here says which of them is right",
    "erased": "the same domains remove or replace with --purge deletes it",
    "unreadable": "give this user the right to it, or look after the volume or service, and verify again",
}


@dataclass(frozen=True)
class Problem(Record):
    """``kind`` is missing, damaged, planted, disagrees, erased or unreadable; ``object`` the name it concerns."""

    kind: str
    object: str
    what: str
    way_out: str


@dataclass(frozen=True)
class Verified(Record):
    """What an audit looked at and found wrong."""

    problems: tuple[Problem, ...]
    refs: int
    blobs: int
    bytes: int

    @property
    def sound(self) -> bool:
        return not self.problems


def verify_campaign(campaign: str, files: LocalFiles | RemoteFiles) -> Verified:
    """All problems, those of refs and history first. Nothing is taken from an earlier look."""
    return Audit(campaign, files).run()


class Audit:
    """One look at everything. ``chain``, ``refs`` and ``sizes`` hold what is readable and intact by itself."""

    def __init__(self, campaign: str, files: LocalFiles | RemoteFiles):
        self.files = files
        self.blobs = Blobs(files, Path())
        self._refs = Refs(files)
        self._history = History(files)
        self._committed = Committed(campaign, self._refs, self._history, self.blobs)
        self.problems: list[Problem] = []
        self.chain: dict[int, HistoryEntry] = {}
        self.refs: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, int] = {}  # of every sound blob, by digest

    def run(self) -> Verified:
        for look in (self._read_history, self._read_refs, self._compare):
            self._try("the store", look)
        if not self.problems:  # else these say the same again
            for what, look in (
                (STACKS, self._committed.every_stack),
                (DOMAINS, self._committed.live),
                (BUNDLES, self._committed.bundles),
                (PROMOTIONS, self._committed.promotions),
            ):
                self._try(what, look, kind="disagrees")
        for look in (self._hash_blobs, self._follow):
            self._try("the store", look)
        return Verified(tuple(dict.fromkeys(self.problems)), len(self.refs), len(self.sizes), sum(self.sizes.values()))

    def needed(self) -> Iterator[tuple[str, str, int | None]]:
        """Every blob that an intact ref leads to and that was not erased on request: who names it, its digest, and its
        size where that is recorded."""
        gone = self.erased()
        for name, content in self.refs.items():
            try:
                yield from (wanted for wanted in self._needed_by(name, content) if wanted[1] not in gone)
            except StoreError:
                continue  # that ref's own problem, which is told where it is read

    def erased(self) -> set[str]:
        """The blobs that were erased on request; none while the history cannot be read."""
        try:
            return erased(self._committed)
        except StoreError:
            return set()

    def _needed_by(self, name: str, content: dict[str, Any]) -> Iterator[tuple[str, str, int | None]]:
        if name.startswith(DOMAINS):
            closed = record(DomainRecord, content, name)
            yield from ((f"{name}, {what}", digest, None) for what, digest in closed.blobs().items())
        elif name.startswith((STACKS, BUNDLES)):  # these lead to all that the others need
            digest = str(content.get("manifest"))
            yield f"{name}, manifest", digest, None
            if digest in self.sizes:
                stack = name.startswith(STACKS)
                manifest = self._committed.manifest(digest) if stack else self._committed.bundle(digest)
                for entry in manifest.files:
                    yield f"{name}, {entry.name}", entry.sha256, entry.size
                if isinstance(manifest, StackManifest) and manifest.basis is not None:
                    yield f"{name}, basis", manifest.basis, None

    def _read_history(self) -> None:
        numbers = []
        for name in self.files.stamps(HISTORY):
            if not is_entry(name):
                self._add("planted", name, "it is no entry of the history")
                continue
            numbers.append(number_of(name))
            entry = self._try(name, lambda: self._history.read(number_of(name)))  # noqa: B023 - called at once
            if entry is not None:
                self.chain[entry.number] = entry
        for number in range(1, max(numbers, default=0) + 1):
            if number not in numbers:
                self._look_for(entry_name(number), "a later entry is there")
        following = entry_name(max(numbers, default=0) + 1)
        self._try(following, lambda: self.files.size(following))  # a folder is not listed, and would block a commit
        for number in range(1, max(numbers, default=0) + 1):
            entry, before = self.chain.get(number), self.chain.get(number - 1)
            if entry is None or (before is None and number > 1):
                continue
            if entry.previous != (before.digest() if before else ""):
                self._add("disagrees", entry_name(number), f"it does not follow {entry_name(number - 1)}")

    def _read_refs(self) -> None:
        for name in self.files.stamps(REFS):
            if not (is_committed(name) or is_epoch(name)):
                self._add("planted", name, "no ref has such a name")
                continue
            content = self._try(name, lambda: self._refs.read(name))  # noqa: B023 - called at once
            if content is None:
                continue
            if is_epoch(name):
                if content.get("epoch") != number_of(name):
                    self._add("disagrees", name, f"it says epoch {content.get('epoch')!r}")
                continue
            self.refs[name] = content
        if CAMPAIGN not in self.refs:
            self._look_for(CAMPAIGN, "no campaign has claimed this store")

    def _compare(self) -> None:
        known = set()
        for entry in self.chain.values():
            known.add(entry.ref)
            if entry.ref in self.refs:
                if self.refs[entry.ref] != entry.content:
                    self._add("disagrees", entry.ref, f"{entry_name(entry.number)} has another content")
            else:
                self._look_for(entry.ref, f"{entry_name(entry.number)} has it")
        for name in self.refs:
            if name not in known:
                self._add("disagrees", name, "no entry of the history has it; after a crash the next commit adds one")

    def _hash_blobs(self) -> None:
        for name in self.files.stamps(BLOBS):
            digest = name.rpartition("/")[2]
            if not DIGEST.fullmatch(digest) or name != blob_name(digest):
                self._add("planted", name, "no blob has such a name")
                continue
            size = self._try(name, lambda: self.blobs.check(digest))  # noqa: B023 - called at once
            if size is not None:
                self.sizes[digest] = size

    def _follow(self) -> None:
        for wanted_by, digest, size in self.needed():
            if not DIGEST.fullmatch(digest):
                self._add("damaged", wanted_by, f"{digest!r} is no SHA-256")
            elif digest not in self.sizes:
                self._look_for(blob_name(digest), f"{wanted_by} names it")
            elif size is not None and self.sizes[digest] != size:
                self._add("disagrees", wanted_by, f"{size} bytes are named, blob {digest} has {self.sizes[digest]}")
        for digest in sorted(self.erased() & self.sizes.keys()):
            self._add("erased", blob_name(digest), "it was erased on request, and is there")

    def _look_for(self, name: str, why: str) -> None:
        """Say that a name which must be there is missing, or what stands there that is no file."""

        def look() -> None:
            if self.files.size(name) is None:
                self._add("missing", name, why)

        self._try(name, look)

    def _try(self, what: str, look: Callable[[], Any], kind: str | None = None) -> Any:
        try:
            return look()
        except NotInStoreError as error:
            self._add(kind or "missing", what, str(error))
        except IntegrityError as error:
            self._add(kind or "damaged", what, str(error))
        except StoreError as error:
            self._add("unreadable", what, str(error))
        return None

    def _add(self, kind: str, name: str, what: str) -> None:
        self.problems.append(Problem(kind, name, what, _WAYS_OUT[kind]))
