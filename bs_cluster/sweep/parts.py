"""Measured outcomes on their way to a sweep's area: gathered to large parts, written while the sweep goes on."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import numpy as np
import pyarrow as pa

from bs_cluster.store import SweepArea
from bs_cluster.sweep.outcomes import OutcomeTable, outcomes_table

PART_OUTCOMES = 10_000
# What a killed sweep loses at most, beside the batches in flight and the part that was being written.
UNWRITTEN_S = 30.0
# Parts that wait for the one thread that writes; past them the sweep waits.
WAITING = 2


@dataclass(frozen=True)
class Measured:
    """Outcomes of rows of ``table``, whose first row is the sweep's row ``start``."""

    table: OutcomeTable
    start: int
    row_N: np.ndarray
    mask_N: np.ndarray
    nll_N: np.ndarray
    tokens_N: np.ndarray


class PartWriter:
    """A context: what was added is written when it ends, however it ends. A failure to write is raised by a later
    ``add``, or at the end."""

    def __init__(self, area: SweepArea):
        self._area = area
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parts")
        self._waiting: deque[Future[None]] = deque()
        self._gathered: list[Measured] = []
        self._count, self._since = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._thread:
            self._write()
            while self._waiting:
                self._waiting.popleft().result()

    def add(self, measured: Measured) -> None:
        if not self._gathered:
            self._since = time.monotonic()
        self._gathered.append(measured)
        self._count += len(measured.row_N)
        if self._count >= PART_OUTCOMES or time.monotonic() - self._since > UNWRITTEN_S:
            self._write()

    def _write(self) -> None:
        if self._gathered:
            self._waiting.append(self._thread.submit(_write_part, self._area, self._gathered))
            self._gathered, self._count = [], 0
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > WAITING):
            self._waiting.popleft().result()


def _write_part(area: SweepArea, gathered: list[Measured]) -> None:
    tables, ends = [], []
    for _, run in groupby(gathered, key=lambda measured: measured.start):
        same = list(run)
        row_N, mask_N, nll_N, tokens_N = (
            np.concatenate([getattr(measured, name) for measured in same])
            for name in ("row_N", "mask_N", "nll_N", "tokens_N")
        )
        tables.append(outcomes_table(same[0].table, row_N, mask_N, nll_N, tokens_N))
        ends += [same[0].start + int(row_N.min()), same[0].start + int(row_N.max())]
    area.write_part(min(ends), max(ends), pa.concat_tables(tables))
