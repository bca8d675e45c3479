"""The commit protocol: one writer at a time, a ref that appears, its entry in the history."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from typing import Any

from bs_cluster.errors import FencedError
from bs_cluster.failpoints import failpoint
from bs_cluster.records import canonical_json
from bs_cluster.store.committed import Committed, without_entry
from bs_cluster.store.filesystem import Files
from bs_cluster.store.history import History
from bs_cluster.store.refs import EPOCHS, Refs, epoch_ref, is_epoch, number_of


class Commits:
    """What writes a campaign's refs. Once it has taken an epoch, it commits in no later one."""

    def __init__(self, campaign: str, files: Files, refs: Refs, history: History, committed: Committed):
        self.campaign = campaign
        self._files = files
        self._refs = refs
        self._history = history
        self._committed = committed
        self._epoch: int | None = None

    def make(self, name: str, content: Mapping[str, Any]) -> None:
        """The ref ``name`` appears, which is the commit; then its entry, after that of a commit before it which a crash
        left out. Raises ``FencedError`` when another writer has taken over, ``RefExistsError`` when the ref exists with
        another content."""
        if self._epoch is not None:
            self.check_epoch(self._epoch)
        self.complete_history()
        failpoint("store.ref")
        self._refs.create(name, content)
        failpoint("store.history")
        self._history.append(name, content)

    def has(self, name: str, content: Mapping[str, Any]) -> bool:
        """Whether this commit was made before; where a crash left its entry out, it has it now. Raises
        ``RefExistsError`` when the ref exists with another content."""
        if not self._refs.has(name, content):
            return False
        self.complete_history()
        return True

    def complete_history(self) -> None:
        """Add the entry that a crash left out, once its ref is known to be a whole commit."""
        refs = self._committed.refs()
        if left_out := without_entry(refs, self._history.entries()):
            held = self._committed
            for read in (held.live, held.bundles, held.promotions):
                read()
            for name in left_out:
                self._history.append(name, refs[name])

    def take_epoch(self) -> int:
        """From now on every older writer is refused. Returns the epoch, from 1."""
        token = {"host": socket.gethostname(), "process": os.getpid(), "token": uuid.uuid4().hex}
        while True:
            number = self._newest_epoch() + 1
            content = {"epoch": number, **token}
            # The answer to a create may be lost and its repetition refused: then what is there is ours.
            if self._files.create(epoch_ref(number), canonical_json(content)) or (
                self._refs.read(epoch_ref(number)) == content
            ):
                break
        self._epoch = number
        return number

    def check_epoch(self, number: int) -> None:
        """Raises ``FencedError`` when another writer has taken over since epoch ``number`` was taken."""
        if (newest := self._newest_epoch()) != number:
            raise FencedError(
                f"this writer of campaign {self.campaign} has epoch {number}, the store is in epoch {newest}: another "
                "coordinator has taken over, and this one commits nothing any more; stop it"
            )

    def _newest_epoch(self) -> int:
        return max((number_of(name) for name in self._files.stamps(EPOCHS) if is_epoch(name)), default=0)
