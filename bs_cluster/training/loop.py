"""The optimisation of one stack, top to bottom: micro-batches, loss, backward, step, judge, validate, restore, save.

What is optimised is an ``Objective``: which batch a step learns from, and the loss on it.
"""

from __future__ import annotations

import math
import time

import torch

from bs_cluster.config.schema import TrainingSection
from bs_cluster.errors import TrainingError
from bs_cluster.events import StepDone
from bs_cluster.failpoints import failpoint
from bs_cluster.records import StackId
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.training.checkpoint import Checkpoints
from bs_cluster.training.guard import SpikeGuard
from bs_cluster.training.objective import Batch, Objective
from bs_cluster.training.ranks import sum_over_ranks, world_size
from bs_cluster.training.session import Session
from bs_cluster.training.state import RoundState, Snapshot
from bs_cluster.training.zero import Learner, learner
from bs_cluster.watchdog import pulse


def learn(
    session: Session,
    stack: StackId,
    training: TrainingSection,
    objective: Objective,
    parent_loss: float,
    checkpoints: Checkpoints,
) -> RoundState:
    """Trains the stack that fires to learn, and leaves it at its best snapshot by ``objective.selection``.

    It begins with the untrained stack, whose selection is its parent's (``parent_loss``), or where a checkpoint of this
    very round was left. A bad step restores the best snapshot with a fresh optimizer; too many in a row end the round,
    and so does an objective that says it diverged. Every rank calls it, and since all decisions are made from numbers
    summed over ranks, all of them agree.

    Raises TrainingError when the parent has no finite loss to go back to.
    """
    if not math.isfinite(parent_loss):
        raise TrainingError(
            f"what {stack.name} starts from loses {parent_loss} on the rows that choose its snapshot: there would be "
            "no sound one to go back to; check the base, its dtype and the rows"
        )
    tuner = session.stacked.tuner
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
            state.step += 1
            batch = objective.batch(state.step)

            rate = learning.rate.set(state.step, state.restored_at)
            tuner.model.train()
            summed = torch.zeros((), dtype=torch.float64, device=learning.device)
            for micro in batch.micros:
                brings = objective.brings(state.step, micro)
                # Gradients are averaged over ranks, losses here are sums over the global batch: hence the world size.
                share = Training(brings.noise_PET, brings.mask_T, batch.tokens / world_size(), balance)
                with tuner.training_step(share):
                    total = objective.loss(learning, micro)
                    learning.backward(total / batch.weight * world_size())
                summed += total.detach().double()
                del total  # the graph behind it would keep the engine beyond the round

            failpoint("training.all_reduce")
            # Everything that is decided below is decided from these, the same bits on every rank.
            own = torch.stack([summed, *map(summed.new_tensor, (checkpoints.due(), checkpoints.look_due()))])
            told = sum_over_ranks(torch.cat([own, balance.totals().double().flatten()]))
            loss, save, look = float(told[0]) / batch.weight, bool(told[1]), bool(told[2])
            load, imbalance, grad_norm = math.nan, math.nan, 0.0  # where there was nothing to learn
            if batch.micros:
                load, imbalance = balance.finish_step(told[3:].view_as(balance.counts_PX))
                grad_norm = learning.gradient_norm()
            watched = objective.watched()
            line = {"loss": loss, "load_balance": load, "imbalance": imbalance, "grad_norm": grad_norm}
            line["learning_rate"] = rate

            if batch.micros:
                suspect = guard.suspects(loss, grad_norm)
                parent = loss_of_parent(session, learning, objective, batch) if suspect else None
                verdict = guard.judge(loss, grad_norm, parent)
            if watched.diverged:
                verdict = "stop"
            if verdict != "go on":
                state.restore()
            elif state.step % training.eval_every == 0 or state.step == training.steps:
                line["selection_loss"] = objective.selection()
                state.offer(line["selection_loss"])

            finite = {key: value for key, value in {**line, **watched.figures}.items() if math.isfinite(value)}
            state.history.append({"step": float(state.step), **finite})
            state.seconds = time.monotonic() - started
            if session.rank == 0:
                seen = {"watched": watched.figures, "diverged": watched.diverged}
                session.report(StepDone(stack, state.step, training.steps, state.seconds, verdict, **line, **seen))
            if look and checkpoints.look(state.step):
                save = True
            if save and state.step < training.steps and verdict != "stop":
                checkpoints.write(state)

        learning.set_weights(state.best.weights)
    return state


@torch.no_grad()
def loss_of_parent(session: Session, learning: Learner, objective: Objective, batch: Batch) -> float:
    """What the parent, the learning stack left out, loses on this very global batch."""
    session.stacked.tuner.model.eval()
    summed = torch.zeros((), dtype=torch.float64, device=learning.device)
    with session.stacked.tuner.parent_only():
        for micro in batch.micros:
            summed += objective.loss(learning, micro).double()
    return float(sum_over_ranks(summed)) / batch.weight
