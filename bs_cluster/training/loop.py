"""The optimisation of one stack, top to bottom: micro-batches, loss, backward, step, judge, validate, restore, save.

Everything that decides a step is a pure function of (seed, step, position in its global batch): which rows, with which
noise. Losses are summed over the tokens of the global batch. So the world size and the size of a micro-batch change
nothing but the order of sums.

Shapes: T tokens, P sites, E experts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.batch import collate_packed, train_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.errors import TrainingError
from bs_cluster.estimates import token_mean
from bs_cluster.events import StepDone
from bs_cluster.failpoints import failpoint
from bs_cluster.records import StackId, canonical_json, sha256_hex
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.training.checkpoint import Checkpoints
from bs_cluster.training.guard import SpikeGuard
from bs_cluster.training.packing import pack_rows
from bs_cluster.training.ranks import sum_over_ranks, world_rank, world_size
from bs_cluster.training.session import Session
from bs_cluster.training.sharding import passes
from bs_cluster.training.state import RoundState, Snapshot
from bs_cluster.training.zero import Learner, learner
from bs_cluster.watchdog import pulse

Unit = Sequence[EncodedRow]  # what counts as one in a batch: a row, or several packed together


class Micro(NamedTuple):
    """Units of a global batch that one pass takes: the first one's ``place`` in that, and whether they count, or only
    fill up for a rank that got fewer than others."""

    place: int
    units: Sequence[Unit]
    counts: bool


def learn(
    session: Session,
    stack: StackId,
    training: TrainingSection,
    train: Sequence[EncodedRow],
    selection: Sequence[EncodedRow],
    parent_loss: float,
    seed: int,
    checkpoints: Checkpoints,
) -> RoundState:
    """Trains the stack that fires to learn, and leaves it at its best snapshot by the loss on ``selection``.

    It begins with the untrained stack, whose loss is its parent's (``parent_loss``), or where a checkpoint of this very
    round was left. A bad step restores the best snapshot with a fresh optimizer; too many in a row end the round. Every
    rank calls it, and since all decisions are made from numbers summed over ranks, all of them agree.

    Raises TrainingError when nothing is there to learn or the parent has no finite loss to go back to.
    """
    if not train or training.steps < 1:
        raise TrainingError(f"{stack.name} has {len(train)} training rows and {training.steps} steps; nothing to learn")
    if not math.isfinite(parent_loss):
        raise TrainingError(
            f"what {stack.name} starts from loses {parent_loss} on the rows that choose its snapshot: there would be "
            "no sound one to go back to; check the base, its dtype and the rows"
        )
    tuner = session.stacked.tuner
    units = pack_rows(train, session.config.data.max_length) if training.packing else [[row] for row in train]
    batches = train_batches(len(units), steps=training.steps, global_batch=training.global_batch, seed=seed)
    guard = SpikeGuard(
        training.spike_deviations, training.spike_margin, training.spike_norm_factor, training.max_spikes
    )

    with learner(tuner, training) as learning:
        first = tuner.sites[0]
        balance = LoadBalance(first.experts, first.top_k, training.load_balance, len(tuner.sites), learning.device)
        untrained = Snapshot(0, parent_loss, learning.weights(), balance.fraction_PE.clone())
        state = RoundState(untrained, guard, learning, balance, history=[{"step": 0.0, "selection_loss": parent_loss}])
        checkpoints.resume(state)
        verdict, started = "go on", time.monotonic() - state.seconds

        while state.step < training.steps and verdict != "stop":
            pulse()
            failpoint("training.step")
            batch = [units[index] for index in batches[state.step]]
            labels = sum(row.completion_length for unit in batch for row in unit)
            tokens = sum(map(tokens_of, batch))
            mine = micro_batches(batch, training.per_device_batch, passes(training, world_size()))
            state.step += 1

            rate = learning.rate.set(state.step, state.restored_at)
            tuner.model.train()
            nll = torch.zeros((), dtype=torch.float64, device=learning.device)
            for micro in mine:
                noise_PET = gate_noise(session, seed, state.step, micro) if training.noise else None
                mask_T = None if micro.counts else nll.new_zeros(sum(map(tokens_of, micro.units)))
                # Gradients are averaged over ranks, losses here are sums over the global batch: hence the world size.
                with tuner.training_step(Training(noise_PET, mask_T, tokens / world_size(), balance)):
                    total = completion_loss(learning, micro.units) * micro.counts
                    learning.backward(share(total, labels))
                nll += total.detach().double()
                del total  # the graph behind it would keep the engine beyond the round

            failpoint("training.all_reduce")
            # Everything that is decided below is decided from these, the same bits on every rank.
            own = torch.stack([nll, nll.new_tensor(checkpoints.due()), nll.new_tensor(checkpoints.look_due())])
            told = sum_over_ranks(torch.cat([own, balance.totals().double().flatten()]))
            loss, save, look = float(told[0]) / labels, bool(told[1]), bool(told[2])
            load, imbalance = balance.finish_step(told[3:].view_as(balance.counts_PX))
            grad_norm = learning.gradient_norm()
            line = {"loss": loss, "load_balance": load, "imbalance": imbalance, "grad_norm": grad_norm}
            line["learning_rate"] = rate

            suspect = guard.suspects(loss, grad_norm)
            parent = loss_of_parent(session, learning, mine, labels) if suspect else None
            verdict = guard.judge(loss, grad_norm, parent)
            if verdict != "go on":
                state.restore()
            elif state.step % training.eval_every == 0 or state.step == training.steps:
                line["selection_loss"] = token_mean(session.score(selection))
                state.offer(line["selection_loss"])

            finite = {key: value for key, value in line.items() if math.isfinite(value)}
            state.history.append({"step": float(state.step), **finite})
            state.seconds = time.monotonic() - started
            if session.rank == 0:
                session.report(StepDone(stack, state.step, training.steps, state.seconds, verdict, **line))
            if look and checkpoints.look(state.step):
                save = True
            if save and state.step < training.steps and verdict != "stop":
                checkpoints.write(state)

        learning.set_weights(state.best.weights)
    return state


def micro_batches(batch: Sequence[Unit], size: int, passes: int) -> list[Micro]:
    """This rank's micro-batches of a step's global batch, dealt out in turn, and as many as ``passes``: all ranks must
    sum as many gradients, of the same parameters in the same order."""
    places = range(0, len(batch), size)
    mine = [Micro(place, batch[place : place + size], True) for place in places[world_rank() :: world_size()]]
    return mine + [Micro(0, batch[:size], False)] * (passes - len(mine))


def gate_noise(session: Session, seed: int, step: int, micro: Micro) -> torch.Tensor:
    """ε of one micro-batch's gates, (P, E, T), on the device that draws it: unit by unit, so that it depends on a
    unit's place in the global batch and not on what else is computed beside it."""
    tuner, device = session.stacked.tuner, session.stacked.base.model.device
    of_units = []
    for number, unit in enumerate(micro.units, start=micro.place):
        # On a CPU the lower 32 bits alone count: a hash has all it was made of in each of them.
        drawn_from = int(sha256_hex(canonical_json([seed, step, number]))[:15], 16)
        generator = torch.Generator(device=device).manual_seed(drawn_from)
        shape = (len(tuner.sites), tuner.sites[0].experts, tokens_of(unit))
        of_units.append(torch.randn(shape, generator=generator, device=device))
    return torch.cat(of_units, dim=2)


def tokens_of(unit: Unit) -> int:
    return sum(len(row.input_ids) for row in unit)


def completion_loss(learning: Learner, units: Sequence[Unit]) -> torch.Tensor:
    """Summed loss (nats) of the completions of one micro-batch: the task loss alone, rows end to end, attention within
    rows. The load-balance gradient joins inside the sites (``stacks/balance.py``)."""
    batch = collate_packed([row for unit in units for row in unit])
    inputs = {key: batch[key].to(learning.device) for key in ("input_ids", "position_ids")}
    return learning.engine(**inputs, completion_labels=batch["labels"].to(learning.device)).sum()


def share(total: torch.Tensor, labels: int) -> torch.Tensor:
    """One micro-batch's part of the global batch's mean, for gradients that are averaged over ranks."""
    return total / labels * world_size()


@torch.no_grad()
def loss_of_parent(session: Session, learning: Learner, mine: Sequence[Micro], labels: int) -> float:
    """What the parent, the learning stack left out, loses on this very global batch."""
    session.stacked.tuner.model.eval()
    nll = torch.zeros((), dtype=torch.float64, device=learning.device)
    with session.stacked.tuner.parent_only():
        for micro in mine:
            nll += completion_loss(learning, micro.units).double() * micro.counts
    return float(sum_over_ranks(nll)) / labels
