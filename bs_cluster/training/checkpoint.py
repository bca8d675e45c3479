"""A round's state on disk: one file a checkpoint, appearing whole, proven by the digest in its name before it is used.

    rounds/<stack>/<step>-<sha256>.safetensors

The tensors are those of ``state.py``; the header's metadata holds the numbers and what round this is of. Nothing in it
depends on the number of workers. A crash loses the time since the last one. One that is damaged, or of a round with
other settings or rows, is told and passed over: the round then goes on from the one before, or begins anew.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save

from bs_cluster.errors import StoreError
from bs_cluster.events import CheckpointTrouble, Event, NodeLeaves, RoundResumed
from bs_cluster.failpoints import failpoint
from bs_cluster.records import StackId, canonical_json, sha256_hex
from bs_cluster.store.round_area import RoundArea
from bs_cluster.training.preemption import Leaving
from bs_cluster.training.ranks import from_all_ranks, world_rank
from bs_cluster.training.state import RoundState

LOOK_EVERY_S = 2.0  # between looks for a notice that a node is taken: each is a barrier
NOTICED_EVERY_S = 15.0  # between checkpoints from then on: platforms give half a minute to two minutes
KEPT = 2  # the newest, and the one before should the newest turn out to be damaged

_NAME = re.compile(r"(\d+)-([0-9a-f]{64})\.safetensors")


class _Unfit(Exception):
    """Why a checkpoint is not taken."""


@dataclass
class Checkpoints:
    """The checkpoints of one round. ``identity`` maps all that decides the round to digests, in words for people.
    ``every_s`` seconds after the last one the next is due; 0: none is written and none taken. ``leaving`` says which
    workers' nodes the platform is about to take; all ranks ask it together.
    """

    area: RoundArea
    stack: StackId
    identity: Mapping[str, str]
    every_s: float
    report: Callable[[Event], None]
    leaving: Callable[[], Leaving | None] = field(default=lambda: None)
    known: Leaving | None = None
    looked_at: float = field(default_factory=time.monotonic)
    written_at: float = field(default_factory=time.monotonic)
    kept: list[str] = field(default_factory=list)

    def due(self) -> bool:
        """By the first rank's clock alone, which the others are to be told."""
        every_s = min(self.every_s, NOTICED_EVERY_S) if self.known else self.every_s
        return self._passed(self.written_at, every_s)

    def look_due(self) -> bool:
        """Whether to ``look``, by the first rank's clock as well."""
        return self._passed(self.looked_at, min(self.every_s, LOOK_EVERY_S))

    def look(self, step: int) -> bool:
        """Whether a node was given notice since the last look: then a checkpoint is due after ``step``. Every rank
        calls it."""
        self.looked_at = time.monotonic()
        leaving = self.leaving()
        news = leaving is not None and (self.known is None or leaving.nodes != self.known.nodes)
        self.known = leaving
        if leaving is not None and news and world_rank() == 0:
            self.report(NodeLeaves(self.stack, step, leaving.ranks, leaving.seconds))
        return news

    def _passed(self, since: float, seconds: float) -> bool:
        return world_rank() == 0 and self.every_s > 0 and time.monotonic() - since >= seconds

    def write(self, state: RoundState) -> None:
        """Every rank calls it; the first one writes. Older ones go when this one is whole."""
        failpoint("training.checkpoint")
        first = world_rank() == 0
        tensors, numbers = state.save(keep=first)
        if first:
            told = {"identity": dict(self.identity), "state": numbers}
            metadata = {key: canonical_json(value).decode() for key, value in told.items()}
            data = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, metadata)
            name = f"{state.step}-{sha256_hex(data)}.safetensors"
            try:
                self.area.write(name, data)
                self.kept = [*self.kept, name][-KEPT:]
                for other in set(self.area.names()) - set(self.kept):
                    self.area.delete(other)
            except StoreError as error:  # a full disk costs checkpoints, not the round
                self.report(CheckpointTrouble(self.stack, state.step, f"could not be written ({error})"))
        self.written_at = time.monotonic()

    def resume(self, state: RoundState) -> bool:
        """Sets ``state`` to the newest checkpoint that is sound, of this round, and readable on every rank; all of them
        call it."""
        first = world_rank() == 0
        for name in from_all_ranks(self._names() if first and self.every_s > 0 else None)[0] or ():
            step, found, why = int(name.partition("-")[0]), None, None
            try:
                found = self._read(name)
            except (StoreError, _Unfit) as error:
                why = str(error)
            # One rank that cannot read it is enough: all of them must go on from the same state.
            unfit = next((told for told in from_all_ranks(why) if told), None)
            if found is not None and unfit is None:
                state.load(*found)
                self.kept = [name]
                if first:
                    self.report(RoundResumed(self.stack, step))
                return True
            if first:
                self.report(CheckpointTrouble(self.stack, step, f"not taken: {unfit}"))
        return False

    def _names(self) -> list[str]:
        """Of whole checkpoints, the newest first."""
        matches = filter(None, map(_NAME.fullmatch, self.area.names()))
        return [match[0] for match in sorted(matches, key=lambda match: int(match[1]), reverse=True)]

    def _read(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        data = self.area.read(name)
        if f"-{sha256_hex(data)}." not in name:
            raise _Unfit("its bytes are not those that were written")
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        identity = json.loads(metadata["identity"])
        if differ := sorted(
            key for key in identity.keys() | self.identity if identity.get(key) != self.identity.get(key)
        ):
            raise _Unfit(f"it is of a round with {' and '.join(f'another {key}' for key in differ)}")
        return load(data), json.loads(metadata["state"])
