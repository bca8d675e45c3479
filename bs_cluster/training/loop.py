"""The optimisation of one stack, top to bottom: micro-batches, loss, backward, step, judge, validate, restore.

Everything that decides a step is a pure function of (seed, step, position in its global batch): which rows, in which
micro-batch, with which noise. Losses are summed over the tokens of the global batch. So world 1 accumulating two
micro-batches and world 2 with one each take the same steps.

Shapes: T tokens, P sites, E experts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.batch import collate_packed, train_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.errors import TrainingError
from bs_cluster.estimates import token_mean
from bs_cluster.events import StepDone
from bs_cluster.records import StackId
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.training.guard import SpikeGuard
from bs_cluster.training.packing import pack_rows
from bs_cluster.training.ranks import sum_over_ranks, world_rank, world_size
from bs_cluster.training.session import Session
from bs_cluster.training.zero import Learner, learner

Unit = Sequence[EncodedRow]  # what counts as one in a batch: a row, or several packed together


@dataclass
class Learned:
    """How it went: steps made, bad steps undone, and a line a step, ``selection_loss`` (on the rows that select
    a snapshot) where it was measured."""

    best_loss: float
    best_step: int = 0
    steps: int = 0
    restores: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """The stack at its best, and the load balance's lagged fractions that went with it."""

    weights: list[torch.Tensor]
    fraction_PE: torch.Tensor


def learn(
    session: Session,
    stack: StackId,
    training: TrainingSection,
    train: Sequence[EncodedRow],
    selection: Sequence[EncodedRow],
    parent_loss: float,
    seed: int,
) -> Learned:
    """Trains the stack that fires to learn, and leaves it at its best snapshot by the loss on ``selection``.

    It begins with the untrained stack, whose loss is its parent's (``parent_loss``). A bad step restores the best
    snapshot with a fresh optimizer; too many in a row end the round. Every rank calls it, and since all decisions are
    made from numbers summed over ranks, all of them agree. Raises TrainingError when nothing is there to learn.
    """
    if not train or training.steps < 1:
        raise TrainingError(f"{stack.name} has {len(train)} training rows and {training.steps} steps; nothing to learn")
    tuner, peft = session.stacked.tuner, session.stacked.peft
    assert peft is not None
    units = pack_rows(train, session.config.data.max_length) if training.packing else [[row] for row in train]
    batches = train_batches(len(units), steps=training.steps, global_batch=training.global_batch, seed=seed)
    guard = SpikeGuard(
        training.spike_deviations, training.spike_margin, training.spike_norm_factor, training.max_spikes
    )
    learned = Learned(parent_loss, history=[{"step": 0.0, "selection_loss": parent_loss}])
    started = time.monotonic()

    with learner(peft, training) as learning:
        first = tuner.sites[0]
        balance = LoadBalance(first.experts, first.top_k, training.load_balance, len(tuner.sites), learning.device)
        best = Snapshot(learning.weights(), balance.fraction_PE.clone())

        for step, batch in enumerate(batches):
            rows = [units[index] for index in batch]
            labels = sum(row.completion_length for unit in rows for row in unit)
            tokens = sum(len(row.input_ids) for unit in rows for row in unit)
            mine = list(micro_batches(rows, training.per_device_batch, step))

            rate = learning.schedule.get_last_lr()[0]
            peft.train()
            nll = torch.zeros((), dtype=torch.float64, device=learning.device)
            for number, micro in mine:
                noise_PET = gate_noise(session, seed, number, micro) if training.noise else None
                # Gradients are averaged over ranks, losses here are sums over the global batch: hence the world size.
                with tuner.training_step(Training(noise_PET, None, tokens / world_size(), balance)):
                    total = completion_loss(session, learning, micro)
                    learning.backward(share(total, labels))
                nll += total.detach().double()

            loss = float(sum_over_ranks(nll)) / labels
            load, imbalance = balance.finish_step(sum_over_ranks(balance.totals()))
            grad_norm = learning.gradient_norm()
            line = {"loss": loss, "load_balance": load, "imbalance": imbalance, "grad_norm": grad_norm}
            line["learning_rate"] = float(rate)
            learned.steps = step + 1

            suspect = guard.suspects(loss, grad_norm)
            parent = loss_of_parent(session, learning, [micro for _, micro in mine], labels) if suspect else None
            verdict = guard.judge(loss, grad_norm, parent)
            if verdict != "go on":
                learning.set_weights(best.weights)
                learning.start_anew()
                balance.fraction_PE = best.fraction_PE.clone()
            elif learned.steps % training.eval_every == 0 or learned.steps == training.steps:
                line["selection_loss"] = token_mean(session.score(selection))
                if math.isfinite(line["selection_loss"]) and line["selection_loss"] < learned.best_loss:
                    learned.best_loss, learned.best_step = line["selection_loss"], learned.steps
                    best = Snapshot(learning.weights(), balance.fraction_PE.clone())

            finite = {key: value for key, value in line.items() if math.isfinite(value)}
            learned.history.append({"step": float(learned.steps), **finite})
            if session.rank == 0:
                seconds = time.monotonic() - started
                session.report(StepDone(stack, learned.steps, training.steps, seconds, verdict, **line))
            if verdict == "stop":
                break

        learning.set_weights(best.weights)
    learned.restores = guard.restores
    return learned


def micro_batches(rows: Sequence[Unit], size: int, step: int) -> list[tuple[int, list[EncodedRow]]]:
    """This rank's micro-batches of a step's global batch, each with its number in the whole round: what its noise is
    drawn from. They are dealt out in turn, so that their number, and not the world size, says what is in them."""
    count = len(rows) // size
    return [
        (step * count + place, [row for unit in rows[place * size : (place + 1) * size] for row in unit])
        for place in range(world_rank(), count, world_size())
    ]


def gate_noise(session: Session, seed: int, number: int, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """ε of one micro-batch's gates, (P, E, T), on the device that draws it."""
    tuner, device = session.stacked.tuner, session.stacked.base.model.device
    generator = torch.Generator(device=device).manual_seed((seed << 20) + number)
    shape = (len(tuner.sites), tuner.sites[0].experts, sum(len(row.input_ids) for row in rows))
    return torch.randn(shape, generator=generator, device=device)


def completion_loss(session: Session, learning: Learner, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Summed loss (nats) of the completions of one micro-batch: the task loss alone, rows end to end, attention within
    rows. The load-balance gradient joins inside the sites (``stacks/balance.py``)."""
    batch = collate_packed(rows)
    inputs = {key: batch[key].to(learning.device) for key in ("input_ids", "position_ids")}
    return learning.engine(**inputs, completion_labels=batch["labels"].to(learning.device)).sum()


def share(total: torch.Tensor, labels: int) -> torch.Tensor:
    """One micro-batch's part of the global batch's mean, for gradients that are averaged over ranks."""
    return total / labels * world_size()


@torch.no_grad()
def loss_of_parent(session: Session, learning: Learner, micros: Sequence[Sequence[EncodedRow]], labels: int) -> float:
    """What the parent, the learning stack left out, loses on this very global batch."""
    peft = session.stacked.peft
    assert peft is not None
    peft.eval()
    nll = torch.zeros((), dtype=torch.float64, device=learning.device)
    with session.stacked.tuner.parent_only():
        for rows in micros:
            nll += completion_loss(session, learning, rows).double()
    return float(sum_over_ranks(nll)) / labels
