"""Mending a store from its intact parts and, where there is one, from an intact second copy. Nothing is guessed: what
is written anew has a digest that something intact names, or is what an intact entry of the history holds.

A blob is named by its digest, so a copy's blob either has it or is no use. A ref's content stands in its entry of the
history, an entry's in its ref, and the entry after it vouches for both. The newest entry has none after it: where the
newest ref and its entry disagree, only a copy can tell.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bs_cluster.errors import IntegrityError, StoreError
from bs_cluster.records import Record, StackRef, canonical_json
from bs_cluster.store.blobs import BLOBS, DIGEST, blob_name
from bs_cluster.store.committed import Committed, without_entry
from bs_cluster.store.filesystem import LocalFiles
from bs_cluster.store.history import HISTORY, History, HistoryEntry, entry_name
from bs_cluster.store.refs import (
    BUNDLES,
    CAMPAIGN,
    DOMAINS,
    EPOCHS,
    ERASURES,
    PROMOTIONS,
    REFS,
    RETIREMENTS,
    STACKS,
    Refs,
    bundle_ref,
    domain_of,
    domain_ref,
    erasure_ref,
    number_of,
    promotion_ref,
    retirement_ref,
    stack_ref,
)
from bs_cluster.store.remote import RemoteFiles
from bs_cluster.store.verify import Audit, Problem, Verified, verify_campaign


@dataclass(frozen=True)
class Mended(Record):
    """One thing that was done, and to what."""

    object: str
    what: str


@dataclass(frozen=True)
class Repaired(Record):
    """What was done, and what an audit afterwards still finds."""

    mended: tuple[Mended, ...]
    left: Verified


def repair_campaign(campaign: str, files: LocalFiles | RemoteFiles, copy: LocalFiles | RemoteFiles | None) -> Repaired:
    """Raises ``StoreError`` when the copy is itself not sound, or this store cannot be read or written at all."""
    donor = None
    if copy is not None:
        donor = Audit(campaign, copy)
        if not (found := donor.run()).sound:
            raise StoreError(f"the copy is not sound: {found.problems[0].object}: {found.problems[0].what}")
    repair = _Repair(campaign, files, donor)
    done = -1
    while done < len(repair.mended):  # a ref that came back names blobs that nothing needed before
        done = len(repair.mended)
        for step in (repair.set_aside, repair.blobs, repair.history, repair.refs, repair.entries_left_out):
            step()
    return Repaired(tuple(repair.mended), verify_campaign(campaign, files))


class _Repair:
    def __init__(self, campaign: str, files: LocalFiles | RemoteFiles, donor: Audit | None):
        self._campaign = campaign
        self._files = files
        self._donor = donor
        self.mended: list[Mended] = []

    def set_aside(self) -> None:
        """What does not belong: foreign names, and what is no file."""
        wrong = {
            problem.object: problem.what
            for problem in self._audit().problems
            if problem.kind == "planted" or (problem.kind == "damaged" and self._is_no_file(problem))
        }
        for name, what in wrong.items():
            self._aside(name, what)

    def blobs(self) -> None:
        audit = self._audit()
        needed = {digest for _, digest, _ in audit.needed() if DIGEST.fullmatch(digest)}
        for name in self._files.stamps(BLOBS):
            digest = name.rpartition("/")[2]
            if digest not in audit.sizes and digest not in needed:
                self._aside(name, "its bytes are not what its name says, and nothing needs it")
        while self._donor is not None and (lacking := self._lacking(audit)):
            for digest in lacking:
                data = self._donor.blobs.get_bytes(digest)
                self._files.write(blob_name(digest), io.BytesIO(data), digest)
                self.mended.append(Mended(blob_name(digest), "taken from the copy"))
            audit = self._audit()  # a manifest that came names more

    def _lacking(self, audit: Audit) -> list[str]:
        assert self._donor is not None
        return [d for _, d, _ in audit.needed() if d not in audit.sizes and d in self._donor.sizes]

    def history(self) -> None:
        """Entries that are missing or damaged, where the entry after them vouches for what they were; and the copy's
        later ones, where its history goes on from here."""
        audit = self._audit()
        last = max(audit.chain, default=0)
        for name in {p.object: None for p in _of(audit, HISTORY) if p.kind == "damaged" and number_of(p.object) > last}:
            self._aside(name, "it is damaged, and no entry was written upon it: its ref is entered anew")
        for number in range(1, max([last, *(self._donor.chain if self._donor else ())]) + 1):
            before, after = audit.chain.get(number - 1), audit.chain.get(number + 1)
            if number > 1 and before is None:
                return  # what comes before is not mended: nothing to link to
            previous, held = before.digest() if before else "", audit.chain.get(number)
            if held is not None and held.previous == previous and self._stands_undisputed(audit, held, after):
                continue
            entry = next(self._candidates(audit, number, previous, after), None)
            if entry is None:
                continue
            if self._stands(entry_name(number)):
                self._aside(entry_name(number), "it is not what the entry after it was written upon")
            self._files.create(entry_name(number), canonical_json(entry.to_dict()))
            self.mended.append(Mended(entry_name(number), f"written anew for {entry.ref}"))
            audit.chain[number] = entry

    def _stands_undisputed(self, audit: Audit, held: HistoryEntry, after: HistoryEntry | None) -> bool:
        """Whether the entry after it vouches for one; or, of the newest, that the copy has no other entry which says
        what the ref here says too: two against one."""
        if after is not None:
            return after.previous == held.digest()
        other = None if self._donor is None else self._donor.chain.get(held.number)
        if other is None or other == held or other.previous != held.previous:
            return True
        return audit.refs.get(other.ref) != other.content

    def _candidates(
        self, audit: Audit, number: int, previous: str, after: HistoryEntry | None
    ) -> Iterator[HistoryEntry]:
        if self._donor is not None and number in self._donor.chain:
            entry = self._donor.chain[number]
            if entry.previous == previous and (after is None or after.previous == entry.digest()):
                yield entry
        if after is not None:
            for name, content in audit.refs.items():
                entry = HistoryEntry(number, previous, name, content)
                if entry.digest() == after.previous:
                    yield entry

    def refs(self) -> None:
        """Refs that are missing, damaged or not what was committed, from the entry that has them."""
        audit = self._audit()
        if any(problem.object.startswith(HISTORY) for problem in audit.problems):
            return
        last = max(audit.chain, default=0)
        for entry in audit.chain.values():
            held = audit.refs.get(entry.ref)
            vouched = entry.number < last or self._donor_has(entry)
            if held == entry.content or (held is not None and not vouched):
                continue
            if self._stands(entry.ref):
                self._aside(entry.ref, "it is not what was committed")
            self._files.create(entry.ref, canonical_json(entry.content))
            self.mended.append(Mended(entry.ref, f"written anew from {entry_name(entry.number)}"))
        entered = {entry.ref for entry in audit.chain.values()}
        for name, problem in {problem.object: problem for problem in _of(audit, REFS)}.items():
            lost = self._donor is not None and problem.kind == "damaged" and name not in entered
            if (lost or name.startswith(EPOCHS)) and self._stands(name):  # not "<ref>, rows", which is no file
                self._aside(name, problem.what)

    def entries_left_out(self) -> None:
        """Refs that no entry has: of a crash one, of a lost history all. They are entered in an order that their
        own words allow; what they were before cannot be told any more."""
        audit = self._audit()
        if any(problem.kind != "disagrees" for problem in [*_of(audit, HISTORY), *_of(audit, REFS)]):
            return
        committed = Committed(self._campaign, Refs(self._files), history := History(self._files), audit.blobs)
        try:
            loose = [
                name
                for name in without_entry(audit.refs, list(audit.chain.values()))
                if self._says_its_name(committed, audit.refs, name)
            ]
            loose.sort(key=lambda name: self._order(committed, audit.refs, name))
        except StoreError:
            return  # a manifest of theirs is lost
        if len(loose) > 1 and any(name.startswith(RETIREMENTS) for name in loose):
            return  # what was there before it and what came after follows from no word of theirs: a copy can tell
        for name in loose:
            history.append(name, audit.refs[name])
            self.mended.append(Mended(name, "entered in the history"))

    def _says_its_name(self, committed: Committed, refs: dict[str, dict[str, Any]], name: str) -> bool:
        """Whether a ref that no entry has was ever one of that name; moved aside when not."""
        content, said = refs[name], name
        if name.startswith(STACKS):
            said = stack_ref(StackRef(committed.manifest(content.get("manifest", "")).stack, ""))
        elif name.startswith(BUNDLES):
            said = bundle_ref(committed.bundle(content.get("manifest", "")).number)
        elif name.startswith(DOMAINS):
            said = domain_ref(content.get("domain", ""), number_of(name))
        elif name.startswith(PROMOTIONS):
            said = promotion_ref(content.get("number", 0))
        elif name.startswith(RETIREMENTS):
            said = retirement_ref(content.get("number", 0))
        elif name.startswith(ERASURES):
            said = erasure_ref(content.get("number", 0))
        if said != name:
            self._aside(name, f"it is what {said} holds, and was never committed under this name")
        return said == name

    def _order(self, committed: Committed, refs: dict[str, dict[str, Any]], name: str) -> tuple[int, int, int]:
        """A stack after its parents, a domain after its last stack, then bundles, promotions at the end."""
        if name == CAMPAIGN:
            return 0, 0, 0
        if name.startswith(BUNDLES):
            return 2, number_of(name), 0
        if name.startswith((PROMOTIONS, RETIREMENTS, ERASURES)):
            return 3, number_of(name), 0
        if name.startswith(STACKS):
            return 1, len(committed.manifest(refs[name]["manifest"]).parents), 0
        own = [other for other in refs if other.startswith(f"{STACKS}/{domain_of(name)}/")]
        parents = [len(committed.manifest(refs[other]["manifest"]).parents) for other in own]
        return 1, max(parents, default=len(refs)), 1

    def _donor_has(self, entry: HistoryEntry) -> bool:
        return self._donor is not None and self._donor.chain.get(entry.number) == entry

    def _audit(self) -> Audit:
        audit = Audit(self._campaign, self._files)
        audit.run()
        return audit

    def _is_no_file(self, problem: Problem) -> bool:
        return "no regular file" in problem.what and problem.object.startswith((REFS, HISTORY, BLOBS))

    def _stands(self, name: str) -> bool:
        """Whether something has that name, be it a file, a folder or a link."""
        try:
            return self._files.size(name) is not None
        except IntegrityError:
            return True

    def _aside(self, name: str, why: str) -> None:
        self.mended.append(Mended(name, f"moved to {self._files.set_aside(name)}: {why}"))


def _of(audit: Audit, folder: str) -> list[Problem]:
    return [problem for problem in audit.problems if problem.object.startswith(folder)]
