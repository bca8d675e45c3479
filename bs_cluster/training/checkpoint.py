"""A round's state on disk: written beside and named when whole, checked by digest before it is used, pruned.

    rounds/<stack>/<step>.safetensors   weights, best snapshot, optimizer state, balance: names in ``state.py``
    rounds/<stack>/<step>.json          numbers, the digest of the tensors, and what round this is of

The JSON is written last and so stands for both. Nothing in them depends on the number of workers. What a crash loses is
the time since the last one; what a checkpoint costs is said by ``training.checkpoint_every_s``.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save

from bs_cluster.errors import NotInStoreError
from bs_cluster.records import canonical_json, sha256_hex
from bs_cluster.store.round_area import RoundArea
from bs_cluster.store.store import Store
from bs_cluster.training.ranks import check_agreement, sum_over_ranks, world_rank
from bs_cluster.training.state import RoundState

log = logging.getLogger(__name__)


@dataclass
class Checkpoints:
    """The checkpoints of one round. ``identity`` is the digest of all that decides the round: one of another round,
    config, base, basis or of other rows is ignored. ``every_s`` seconds after the last one the next is due; 0: never.
    """

    area: RoundArea
    identity: str
    every_s: float
    written_at: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """By the first rank's clock alone, which the others are to be told."""
        return world_rank() == 0 and self.every_s > 0 and time.monotonic() - self.written_at >= self.every_s

    def write(self, state: RoundState) -> None:
        """Every rank calls it; the first one writes. Older ones go when this one is whole."""
        first = world_rank() == 0
        tensors, numbers = state.save(keep=first)
        if first:
            data = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
            told = {"identity": self.identity, "sha256": sha256_hex(data), "state": numbers}
            self.area.write(f"{state.step}.safetensors", data)
            self.area.write(f"{state.step}.json", canonical_json(told))
            kept = (f"{state.step}.json", f"{state.step}.safetensors")
            for name in sorted(set(self.area.names()) - set(kept)):  # 7.json goes before 7.safetensors
                self.area.delete(name)
        self.written_at = time.monotonic()

    def resume(self, state: RoundState) -> bool:
        """Sets ``state`` to the newest checkpoint that is sound and of this round; every rank calls it, and the first
        one chooses. Raises TrainingError if another cannot read what the first one did."""
        found, chosen = None, -1
        if world_rank() == 0:
            for step in sorted(self._steps(), reverse=True):
                found = self._read(step)
                if found is not None:
                    chosen = step
                    break
        chosen = int(sum_over_ranks(torch.tensor(chosen if world_rank() == 0 else 0)))
        if chosen < 0:
            return False
        found = found or self._read(chosen)
        check_agreement(f"{self.area.folder} at step {chosen}", canonical_json(found[1] if found else None))
        assert found is not None
        state.load(*found)
        return True

    def _read(self, step: int) -> tuple[Any, Any] | None:
        try:
            told = json.loads(self.area.read(f"{step}.json"))
            if told["identity"] != self.identity:
                log.warning("%s: step %d is of a round with other settings or rows; ignored", self.area.folder, step)
                return None
            data = self.area.read(f"{step}.safetensors")
        except (NotInStoreError, ValueError, KeyError) as error:
            log.warning("%s: step %d cannot be read (%s); ignored", self.area.folder, step, error)
            return None
        if sha256_hex(data) != told["sha256"]:
            log.warning("%s: step %d has other bytes than were written; ignored", self.area.folder, step)
            return None
        return load(data), told["state"]

    def _steps(self) -> list[int]:
        """Steps whose checkpoint is whole."""
        names = (name.partition(".") for name in self.area.names())
        return [int(step) for step, _, kind in names if kind == "json" and step.isdecimal()]


def forget_other_rounds(store: Store, stack: str | None) -> None:
    """Deletes the checkpoints of all rounds but the one of ``stack``: they are over, committed or rejected."""
    if world_rank() == 0:
        for other in set(store.rounds()) - {stack}:
            area = store.round_area(other)
            for name in area.names():
                area.delete(name)
