"""What the stage keeps of a campaign: losses of the very same rows under all that was tried, in one JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from bs_cluster.records import Record

Nats = np.ndarray  # (B,) summed loss of each row's completion; NaN where what was tried has no meaning for the row


@dataclass(frozen=True)
class Tried(Record):
    """``nll`` is each row's summed loss; ``parameters`` were trained for it, in ``seconds``; ``note`` says how."""

    nll: tuple[float, ...]
    parameters: int
    seconds: float
    note: str


@dataclass(frozen=True)
class Instead(Record):
    """A finished campaign and its rivals, row by row.

    Rows are the campaign's sweep rows, ``owners`` as in ``ModeLosses``. ``ours`` is what the campaign itself recorded
    for them, by mode; ``matrix[after][of]`` what it recorded of its validation rows as domains closed. ``classified``
    is for each row the domain that a label classifier names, empty where it calls the prompt foreign. ``tried`` grows:
    ``lora:chat`` and its like, merges of them, ``sequential:code``, which has gone through all domains up to code.
    ``steps`` is of a domain, ``rank`` and ``rate`` those of every LoRA.
    """

    campaign: str
    data: str
    seed: int
    base: str
    domains: tuple[str, ...]
    machine: str
    versions: dict[str, str]
    row_ids: tuple[str, ...]
    owners: tuple[str, ...]
    tokens: tuple[int, ...]
    ours: dict[str, tuple[float | None, ...]]
    our_parameters: int
    our_seconds: float
    drift: float | None
    matrix: dict[str, dict[str, dict[str, float]]]
    steps: dict[str, int]
    batch: int
    rank: int
    rate: float
    classified: tuple[str, ...]
    tried: dict[str, Tried]

    def nats(self, name: str) -> Nats:
        """Of something tried. Raises KeyError for what was not."""
        return np.array(self.tried[name].nll)

    def mode(self, name: str) -> Nats:
        """Of one of our own modes."""
        return np.array([np.nan if value is None else value for value in self.ours[name]])

    def with_tried(self, name: str, tried: Tried) -> Self:
        return replace(self, tried={**self.tried, name: tried})

    def save(self, path: Path) -> None:
        """Whole or not at all: a stage that is killed goes on from what it had."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.from_dict(json.loads(path.read_text()))


def write_json(path: Path, value: Mapping) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unready = path.with_suffix(".unready")
    unready.write_text(json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n")
    os.replace(unready, path)
