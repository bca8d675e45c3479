"""The objective of a grpo round: of a group of its own answers to a prompt, the stack learns those that are right.

An answer is drawn from a seed of its own, (round, step, prompt, place in its group), and is worth one if its check
passes (``bs_cluster.data.verify``), else nothing. A group whose answers are all worth the same teaches nothing and is
left out.

Shapes: B answers, P and C tokens of prompts and answers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from bs_cluster.config.rounds import RoundSection
from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.aligned import Task
from bs_cluster.data.batch import pad, train_batches
from bs_cluster.records import RowLoss
from bs_cluster.training.objective import Batch, Learning, Micro, Watched, drawn_from
from bs_cluster.training.ranks import world_rank, world_size
from bs_cluster.training.rollouts import Answer, Rollouts
from bs_cluster.training.session import Session
from bs_cluster.training.sharding import passes
from bs_cluster.training.trl_losses import Losses
from bs_cluster.training.zero import Learner

JUDGED_BY = 4  # draws of each held-out prompt
STEADY = 1e-4  # TRL's, under the spread of a group


class Drawn(NamedTuple):
    """An answer of the policy and what it was worth beside the others of its group; ``counts`` is 0 for one that only
    fills up a micro-batch."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    advantage: float
    counts: int


class Rewards:
    """GRPO (Shao et al., 2402.03300) by TRL's loss, token by token over the global batch (DAPO's normalisation), one
    optimizer step for each draw: the policy that learns is the one that answered."""

    def __init__(
        self,
        session: Session,
        entry: RoundSection,
        training: TrainingSection,
        losses: Losses,
        rollouts: Rollouts,
        train: Sequence[Task],
        selection: Sequence[Task],
        seed: int,
    ):
        self.session, self.entry, self.training, self.losses = session, entry, training, losses
        self.rollouts, self.train, self.selected, self.seed = rollouts, train, selection, seed
        self.batches = train_batches(len(train), steps=training.steps, global_batch=entry.global_batch, seed=seed)
        self.figures: dict[str, float] = {}
        self.learned = False

    def batch(self, step: int) -> Batch:
        tasks = [self.train[index] for index in self.batches[step - 1]]
        group = self.entry.group
        seeds = [drawn_from(self.seed, step, place, number) for place in range(len(tasks)) for number in range(group)]
        answers = self.rollouts.drawn([task for task in tasks for _ in range(group)], seeds)
        groups = [answers[start : start + group] for start in range(0, len(answers), group)]
        telling = [(task, of) for task, of in zip(tasks, groups, strict=True) if len({a.right for a in of}) > 1]
        self.figures = {
            "reward": statistics.fmean(answer.right for answer in answers),
            "answer_tokens": statistics.fmean(len(answer.tokens) for answer in answers),
            "telling": len(telling) / len(groups),
        }
        drawn = [each for task, of in telling for each in _weighed(task, of)]
        self.learned = bool(drawn)
        if not drawn:
            return Batch((), 1.0, 0)
        weight = sum(len(each.tokens) for each in drawn)
        return Batch(self._micros(drawn), weight, weight + sum(len(each.prompt) for each in drawn))

    def _micros(self, drawn: Sequence[Drawn]) -> list[Micro]:
        """This rank's: all of one size, so that TRL can gather, and as many as every rank makes."""
        places = passes(self.training, world_size()) * world_size()
        size = math.ceil(len(drawn) / places)
        filled = [*drawn, *[drawn[0]._replace(counts=0)] * (size * places - len(drawn))]
        starts = range(world_rank() * size, len(filled), size * world_size())
        return [Micro(start, filled[start : start + size], True) for start in starts]

    def brings(self, step: int, micro: Micro) -> Learning:
        """No noise: an answer is drawn from the very function that learns from it."""
        inputs = self._inputs(micro)
        mask_BT = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        return Learning(None, mask_BT.flatten().double())

    def loss(self, learning: Learner, micro: Micro) -> torch.Tensor:
        inputs = {name: tensor.to(learning.device) for name, tensor in self._inputs(micro).items()}
        return self.losses.of(learning.engine, inputs | {"ref_per_token_logps": self._reference(inputs)})

    @torch.no_grad()
    def _reference(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """log π of each answer's tokens at the parent, (B, C), by the head that TRL gave the base."""
        tuner = self.session.stacked.tuner
        ids_BT = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask_BT = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        answered = inputs["completion_ids"].shape[1]
        labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
        labels_BT[:, :-answered] = -100
        more = {name: tensor for name, tensor in inputs.items() if name == "token_type_ids"}
        with tuner.parent_only():
            out = tuner.model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, fused_lm_head=True, **more)
        return out.log_probs[:, -answered:]

    def _inputs(self, micro: Micro) -> dict[str, torch.Tensor]:
        """TRL's own names; prompts are filled up on the left, answers on the right."""
        drawn: Sequence[Drawn] = micro.units
        model, tokenizer = self.session.stacked.base.model, self.session.stacked.base.tokenizer
        fill: int = tokenizer.pad_token_id  # type: ignore[assignment]
        inputs = {
            "prompt_ids": pad([each.prompt for each in drawn], fill, "left"),
            "prompt_mask": pad([[1] * len(each.prompt) for each in drawn], 0, "left"),
            "completion_ids": pad([each.tokens for each in drawn], fill),
            "completion_mask": pad([[each.counts] * len(each.tokens) for each in drawn], 0),
            "advantages": torch.tensor([each.advantage for each in drawn]),
            # The sum itself is wanted: TRL divides by this over the number of processes.
            "num_items_in_batch": torch.tensor(float(self.losses.processes)),
        }
        if model.config.get_text_config() is not model.config:
            whole = inputs["prompt_ids"].shape[1] + inputs["completion_ids"].shape[1]
            inputs["token_type_ids"] = torch.zeros(len(drawn), whole, dtype=torch.long)
        return inputs

    def selection(self) -> float:
        """The share of answers to the selection prompts that are wrong, by the same draws each time."""
        return statistics.fmean(loss.nll for loss in drawn_wrong(self.rollouts, self.selected))

    def watched(self) -> Watched:
        logged = self.losses.figures() if self.learned else {}
        figures = self.figures | {name: logged[name] for name in ("kl", "entropy") if name in logged}
        kl, entropy = figures.get("kl", 0.0), figures.get("entropy", math.inf)
        diverged = None
        if not kl <= self.entry.max_kl:
            diverged = f"KL to the parent {kl:.3f} nats per token is above max_kl = {self.entry.max_kl:g}"
        elif not entropy >= self.entry.min_entropy:
            diverged = f"entropy {entropy:.3f} nats per token is below min_entropy = {self.entry.min_entropy:g}"
        return Watched(figures, diverged)


def _weighed(task: Task, answers: Sequence[Answer]) -> list[Drawn]:
    """A group's answers by what they are worth: reward less the group's mean, over its spread."""
    rewards = [float(answer.right) for answer in answers]
    mean, spread = statistics.fmean(rewards), statistics.stdev(rewards) + STEADY
    prompt = task.row.input_ids[: task.row.prompt_length]
    return [
        Drawn(prompt, answer.tokens, (reward - mean) / spread, 1)
        for answer, reward in zip(answers, rewards, strict=True)
    ]


def drawn_wrong(rollouts: Rollouts, tasks: Sequence[Task]) -> list[RowLoss]:
    """Of each task, the share of ``JUDGED_BY`` answers from seeds of its own that are wrong, as a loss of one token."""
    seeds = [drawn_from(place, number) for place in range(len(tasks)) for number in range(JUDGED_BY)]
    answers = rollouts.drawn([task for task in tasks for _ in range(JUDGED_BY)], seeds)
    wrong = [not answer.right for answer in answers]
    return [RowLoss(statistics.fmean(wrong[at : at + JUDGED_BY]), 1) for at in range(0, len(wrong), JUDGED_BY)]
