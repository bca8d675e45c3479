"""Which stacks are in memory: those that running rows fire must be, the others may wait in the store.

From the moment the meta-router has decided for a request, what it fires and is not here is read by a thread of its own,
while running rows go on; the engine's thread then attaches it between two steps. The bytes are hashed as they are read,
each time, so that nothing is fired that this process has not checked. Where there is no room, what has not fired for
longest leaves. A block of fewer stacks is still the same products of those that fire: no bit of an answer changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from bs_cluster.adapter_format import WEIGHTS_NAME
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import StackManifest
from bs_cluster.serving.metrics import Metrics
from bs_cluster.store.stack_load import StoredStack
from bs_cluster.store.store import Store


@dataclass(frozen=True)
class Known:
    """A stack of some bundle, ``size`` bytes as it is computed with."""

    manifest: StackManifest
    store: Store
    size: int


class Residency:
    """The stacks of all bundles that are served, on one base; ``budget`` in bytes, None for no limit. All but the
    reading happens in the caller's thread."""

    def __init__(self, stacked: StackedBase, budget: int | None, metrics: Metrics):
        self._stacked, self._budget, self._metrics = stacked, budget, metrics
        self._known: dict[str, Known] = {}
        self._fired: dict[str, int] = {}  # the turn in which each that is here was last asked for
        self._turn = 0
        self._reads: dict[str, Future[StoredStack]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stacks")

    def expect(self, manifest: StackManifest, store: Store) -> None:
        """A stack that may be asked for from now on. It is here at once where there is room. Raises as
        ``StackedBase.attach`` does."""
        name = manifest.stack.name
        if name in self._known:
            return
        stored_bytes, computed = manifest.file(WEIGHTS_NAME).size, self._stacked.base.model.dtype
        known = Known(manifest, store, stored_bytes * computed.itemsize // torch.float32.itemsize)
        if not self._fired or self._fits(known.size):
            self._attach(known, store.load_stack(manifest))
        self._known[name] = known

    def hold(self, names: Iterable[str], in_use: Iterable[str], arrived: Callable[[], None]) -> bool:
        """Whether all of ``names`` are here, to be fired beside those ``in_use``, which stay. If not, they come as soon
        as there is room, and ``arrived`` is called by another thread when it is worth asking again.

        More than the budget is held only where a request by itself fires more. Raises IntegrityError or another
        StoreError for a stack that cannot be read.
        """
        names, in_use = list(names), set(in_use)
        self._turn += 1
        self._fired |= {name: self._turn for name in names if name in self._fired}
        lacking = [name for name in names if name not in self._fired]
        stay = in_use | set(names)
        if not lacking:
            self._make_room(0, stay)  # after a request that alone fired more than the budget
            return True
        if in_use and self._budget is not None and self._size(stay) > self._budget:
            return False
        wanted = {name: read for name, read in self._reads.items() if name in lacking or not read.done()}
        self._reads = wanted  # a request that has gone wants its stacks no more
        for name in set(lacking) - set(self._reads):
            known = self._known[name]
            self._reads[name] = self._reader.submit(self._read, known)
            self._reads[name].add_done_callback(lambda _: arrived())
        if not all(self._reads[name].done() for name in lacking):
            return False
        reads = {name: self._reads.pop(name) for name in lacking}
        for name, read in reads.items():
            stored = read.result()
            self._make_room(self._known[name].size, stay)
            self._attach(self._known[name], stored)
        return True

    def _read(self, known: Known) -> StoredStack:
        started = time.perf_counter()
        stored = known.store.load_stack(known.manifest)
        self._metrics.stack_seconds.observe(time.perf_counter() - started)
        return stored

    def _fits(self, size: int) -> bool:
        return self._budget is None or self._size(self._fired) + size <= self._budget

    def _size(self, names: Iterable[str]) -> int:
        return sum(self._known[name].size for name in names)

    def _make_room(self, size: int, stay: set[str]) -> None:
        """Drops what has not fired for longest, but never the last: a base without any stack is another model."""
        leaving = sorted(set(self._fired) - stay, key=self._fired.__getitem__)
        while leaving and len(self._fired) > 1 and not self._fits(size):
            name = leaving.pop(0)
            self._stacked.drop(name)
            del self._fired[name]
            self._metrics.resident.set(len(self._fired))

    def _attach(self, known: Known, stored: StoredStack) -> None:
        self._stacked.add(known.manifest, stored)
        self._stacked.fire(self._stacked.names)
        self._fired[known.manifest.stack.name] = self._turn
        self._metrics.resident.set(len(self._fired))
