"""What a round optimises, as the loop sees it, and the supervised one: the next token of completions.

Everything that decides a step is a pure function of (seed, step, position in its global batch): which rows, with which
noise, and in a round of rewards which answers are drawn. Losses are summed over the global batch and divided by its
weight once. So the world size and the size of a micro-batch change nothing but the order of sums.

Shapes: T tokens, P sites, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.batch import collate_packed, train_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.estimates import token_mean
from bs_cluster.records import canonical_json, sha256_hex
from bs_cluster.training.packing import pack_rows
from bs_cluster.training.ranks import world_rank, world_size
from bs_cluster.training.session import Session
from bs_cluster.training.sharding import passes
from bs_cluster.training.zero import Learner

Row = Sequence[EncodedRow]  # what counts as one in a supervised batch: a row, or several packed together


class Micro(NamedTuple):
    """Units of a global batch that one pass takes: the first one's ``place`` in that, and whether they count, or only
    fill up for a rank that got fewer than others."""

    place: int
    units: Sequence[Any]
    counts: bool


@dataclass(frozen=True)
class Batch:
    """A step's global batch: the micro-batches of this rank, of which every rank has as many; what their summed losses
    are divided by; tokens in all. Without micro-batches there is nothing to learn from it, on any rank."""

    micros: Sequence[Micro]
    weight: float
    tokens: int


class Learning(NamedTuple):
    """What a pass brings beside its rows: noise (P, E, T) or None, and where tokens are padding a mask (T,)."""

    noise_PET: torch.Tensor | None
    mask_T: torch.Tensor | None


@dataclass
class Watched:
    """What an objective saw in the step just made, by name and the same on every rank; and why the round must end, if
    it must."""

    figures: Mapping[str, float] = field(default_factory=dict)
    diverged: str | None = None


class Objective(Protocol):
    def batch(self, step: int) -> Batch:
        """The global batch of optimizer step ``step``, from 1. Every rank calls it."""
        ...

    def brings(self, step: int, micro: Micro) -> Learning: ...

    def loss(self, learning: Learner, micro: Micro) -> torch.Tensor:
        """Summed over the micro-batch, with a gradient."""
        ...

    def selection(self) -> float:
        """Lower is better, on the rows that choose a snapshot. Every rank calls it."""
        ...

    def watched(self) -> Watched:
        """Of the step just made; every rank calls it."""
        ...


class NextToken:
    """Cross-entropy of completions, nats per completion token; rows end to end, attention within rows. The load-balance
    gradient joins inside the sites (``stacks/balance.py``)."""

    def __init__(
        self,
        session: Session,
        training: TrainingSection,
        train: Sequence[EncodedRow],
        selection: Sequence[EncodedRow],
        seed: int,
    ):
        self.session, self.training, self.seed, self.selected = session, training, seed, selection
        packed = training.packing
        self.units: list[Row] = (
            list(pack_rows(train, session.config.data.max_length)) if packed else [[row] for row in train]
        )
        settings = {"steps": training.steps, "global_batch": training.global_batch, "seed": seed}
        self.batches = train_batches(len(self.units), **settings)

    def batch(self, step: int) -> Batch:
        units = [self.units[index] for index in self.batches[step - 1]]
        micros = micro_batches(units, self.training)
        labels = sum(row.completion_length for unit in units for row in unit)
        return Batch(micros, labels, sum(map(tokens_of, units)))

    def brings(self, step: int, micro: Micro) -> Learning:
        device = self.session.stacked.base.model.device
        tokens = sum(map(tokens_of, micro.units))
        return Learning(
            gate_noise(self.session, self.seed, step, micro) if self.training.noise else None,
            None if micro.counts else torch.zeros(tokens, dtype=torch.float64, device=device),
        )

    def loss(self, learning: Learner, micro: Micro) -> torch.Tensor:
        batch = collate_packed([row for unit in micro.units for row in unit])
        inputs = {key: batch[key].to(learning.device) for key in ("input_ids", "position_ids")}
        nll_N = learning.engine(**inputs, completion_labels=batch["labels"].to(learning.device))
        return nll_N.sum() * micro.counts

    def selection(self) -> float:
        return token_mean(self.session.score(self.selected))

    def watched(self) -> Watched:
        return Watched()


def micro_batches(units: Sequence[Any], training: TrainingSection) -> list[Micro]:
    """This rank's micro-batches of a step's global batch, dealt out in turn, and as many as every rank makes: all ranks
    must sum as many gradients, of the same parameters in the same order."""
    size, wanted = training.per_device_batch, passes(training, world_size())
    places = range(0, len(units), size)
    mine = [Micro(place, units[place : place + size], True) for place in places[world_rank() :: world_size()]]
    return mine + [Micro(0, units[:size], False)] * (wanted - len(mine))


def gate_noise(session: Session, seed: int, step: int, micro: Micro) -> torch.Tensor:
    """ε of one micro-batch's gates, (P, E, T), on the device that draws it: unit by unit, so that it depends on a
    unit's place in the global batch and not on what else is computed beside it."""
    tuner, device = session.stacked.tuner, session.stacked.base.model.device
    of_units = []
    for number, unit in enumerate(micro.units, start=micro.place):
        generator = torch.Generator(device=device).manual_seed(drawn_from(seed, step, number))
        shape = (len(tuner.sites), tuner.sites[0].experts, tokens_of(unit))
        of_units.append(torch.randn(shape, generator=generator, device=device))
    return torch.cat(of_units, dim=2)


def drawn_from(*place: int) -> int:
    """A seed of its own for a place in a round. On a CPU the lower 32 bits alone count: a hash has all that it was made
    of in each of them."""
    return int(sha256_hex(canonical_json(list(place)))[:15], 16)


def tokens_of(unit: Row) -> int:
    return sum(len(row.input_ids) for row in unit)
