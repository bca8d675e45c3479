"""The history: every commit in the order in which it came, each entry holding the digest of the one before.

    history/<n>.json    {"number": n, "previous": <sha256 of entry n-1>, "ref": <name>, "content": <the ref's content>}

A ref's appearance is the commit; its entry follows at once, and the next writer adds one that a crash left out. So a
ref that was deleted, or put back as it was once, is at odds with the chain. An entry holds the ref's whole content:
either one mends the other. A store that was put back whole, refs and history alike, cannot be told from what it was.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from bs_cluster.errors import IntegrityError, StoreError
from bs_cluster.records import Record, canonical_json
from bs_cluster.store.filesystem import Files
from bs_cluster.store.refs import decode, is_committed, number_of, read_record, record

HISTORY = "history"
_ENTRY = re.compile(rf"{HISTORY}/[1-9][0-9]{{0,8}}\.json")
_TRIES = 100


@dataclass(frozen=True)
class HistoryEntry(Record):
    """Commit ``number`` (from 1): the ref that appeared and what it holds; ``previous`` is empty for the first."""

    number: int
    previous: str
    ref: str
    content: dict[str, Any]


def entry_name(number: int) -> str:
    return f"{HISTORY}/{number}.json"


def is_entry(name: str) -> bool:
    return _ENTRY.fullmatch(name) is not None


class History:
    """The chain of one campaign."""

    def __init__(self, files: Files):
        self._files = files
        self._read: dict[int, tuple[Hashable, HistoryEntry]] = {}  # by stamp: an entry is parsed once

    def entries(self) -> list[HistoryEntry]:
        """All of them, first to last. Raises ``IntegrityError`` when one is missing, damaged or not the next link."""
        stamps = {number_of(name): stamp for name, stamp in self._files.stamps(HISTORY).items() if is_entry(name)}
        if stamps and (missing := sorted(set(range(1, max(stamps) + 1)) - set(stamps))):
            raise IntegrityError(f"{entry_name(missing[0])} is missing; repair the store")
        if len(stamps) < len(self._read):
            raise IntegrityError(
                f"{entry_name(len(self._read))} was there and is gone: the store lost history under a running "
                "process; restore it from a copy, then repair"
            )
        chain: list[HistoryEntry] = []
        found: dict[int, tuple[Hashable, HistoryEntry]] = {}
        for number in sorted(stamps):
            held = self._read.get(number)
            entry = held[1] if held is not None and held[0] == stamps[number] else self.read(number)
            if entry.previous != (chain[-1].digest() if chain else ""):
                raise IntegrityError(
                    f"{entry_name(number)} does not follow {entry_name(number - 1)}: one of them is not what was "
                    "written; repair the store from a copy"
                )
            found[number] = stamps[number], entry
            chain.append(entry)
        self._read = found
        return chain

    def read(self, number: int) -> HistoryEntry:
        name = entry_name(number)
        entry = record(HistoryEntry, decode(read_record(self._files, name), name), name)
        if entry.number != number or not is_committed(entry.ref):
            raise IntegrityError(f"{name} is entry {entry.number}, of {entry.ref!r}; repair the store")
        return entry

    def append(self, ref: str, content: Mapping[str, Any]) -> None:
        """Add the entry of a ref that exists. A ref that has one already gets no second."""
        for _ in range(_TRIES):
            chain = self.entries()
            if any(entry.ref == ref for entry in chain):
                return
            entry = HistoryEntry(len(chain) + 1, chain[-1].digest() if chain else "", ref, dict(content))
            if self._files.create(entry_name(entry.number), canonical_json(entry.to_dict())):
                return
        raise StoreError(f"{ref}: {_TRIES} entries in a row were taken by other writers; stop the others, run it again")
