"""What a round is judged by: measured with the parent before it learns, and with its stack afterwards."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from bs_cluster.config.rounds import DPO, GRPO, RoundSection
from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.aligned import Pair, Task
from bs_cluster.data.rows import UNCHECKED, Question
from bs_cluster.estimates import Estimate, paired_difference, token_mean
from bs_cluster.records import BeforeAfter, RowLoss, TrainRound
from bs_cluster.training.commit_rule import RISE, Decision, decide, decide_aligned, split_validation
from bs_cluster.training.objective import NextToken, Objective
from bs_cluster.training.preferences import Preferences, log_probabilities, ranked_wrong, wrong
from bs_cluster.training.rewards import Rewards, drawn_wrong
from bs_cluster.training.rollouts import Answer, Rollouts
from bs_cluster.training.session import Session
from bs_cluster.training.trl_losses import Losses, trainer

SHOWN = 6  # held-out prompts whose answers are shown


@dataclass(frozen=True)
class Judged:
    """``before`` and ``after`` on the rows that decide, the paired gain, what is decided, and what else was measured,
    for the manifest."""

    before: float
    after: float
    gain: Estimate
    verdict: Decision
    metrics: Mapping[str, float]
    examples: Sequence[BeforeAfter] = ()


class Exam(Protocol):
    """Every rank calls all of it, in this order; for ``judge`` the stack fires beside its parents."""

    def prepare(self) -> None: ...

    def learning(self, name: str, seed: int) -> AbstractContextManager[tuple[Objective, float]]:
        """Lets the untrained stack ``name`` learn while it lasts: what it optimises, the parent's selection loss."""
        ...

    def judge(self) -> Judged: ...


class Supervised:
    """Losses of held-out rows: the stack must surely beat its parent, and where it begins beside other domains' stacks
    the base too, which those may have made it worse than."""

    def __init__(self, session: Session, step: TrainRound, training: TrainingSection):
        self.session, self.step, self.training = session, step, training
        rows = session.rows(step.stack.domain)
        self.train = rows.train
        self.selection, self.decision = split_validation(rows.validation, training.selection_share)
        self.parents = [stack.name for stack in step.context]

    def prepare(self) -> None:
        self.session.stacked.fire(self.parents)
        self.before, self.parent_loss = (
            self.session.score(self.decision),
            token_mean(self.session.score(self.selection)),
        )
        self.base: list[RowLoss] | None = None
        if self.parents and all(stack.domain != self.step.stack.domain for stack in self.step.context):
            self.session.stacked.fire([])
            self.base = self.session.score(self.decision)
            self.session.stacked.fire(self.parents)

    @contextmanager
    def learning(self, name: str, seed: int) -> Iterator[tuple[Objective, float]]:
        self.session.stacked.fire(self.parents, train=name)
        yield NextToken(self.session, self.training, self.train, self.selection, seed), self.parent_loss

    def judge(self) -> Judged:
        after = self.session.score(self.decision)
        gain = paired_difference(self.before, after)
        verdict = decide(
            gain,
            self.training.min_improvement,
            self.training.min_improvement_errors,
            over_base=paired_difference(self.base, after) if self.base else None,
        )
        return Judged(token_mean(self.before), token_mean(after), gain, verdict, {})


class Aligned(ABC):
    """The objective itself on held-out prompts, and what it costs: losses of the domain's own validation rows, and of
    every closed domain's beside whose stacks this domain's fire, which is more than any gate lets through."""

    def __init__(
        self,
        session: Session,
        step: TrainRound,
        entry: RoundSection,
        training: TrainingSection,
        rollouts: Rollouts,
    ):
        self.session, self.step, self.entry, self.training = session, step, entry, training
        self.rows = session.rows(step.stack.domain).aligned[step.entry]
        self.selection, self.decision = split_validation(self.rows.held_out, training.selection_share)
        self.rollouts = rollouts
        self.parents = [stack.name for stack in step.context]

    @abstractmethod
    def _asked(self) -> list[Task]:
        """Held-out prompts that are answered greedily too."""

    @abstractmethod
    def _before(self) -> list[RowLoss]:
        """What goes wrong with the parent, of all prompts that decide."""

    @abstractmethod
    def _after(self) -> tuple[list[RowLoss], dict[str, float]]:
        """What still does with the stack, and what else was measured."""

    @abstractmethod
    def _objective(self, losses: Losses, seed: int) -> Objective: ...

    def prepare(self) -> None:
        self.losses_before = self._guarded(self.parents)
        self.session.stacked.fire(self.parents)
        self.answered = self.rollouts.greedy(self._asked())
        self.before = self._before()

    @contextmanager
    def learning(self, name: str, seed: int) -> Iterator[tuple[Objective, float]]:
        stacked = self.session.stacked
        stacked.fire(self.parents)
        with trainer(stacked, self.entry, seed) as losses:
            stacked.fire(self.parents, train=name)
            objective = self._objective(losses, seed)
            with stacked.tuner.parent_only():
                parent = objective.selection()
            yield objective, parent

    def judge(self) -> Judged:
        after, metrics = self._after()
        asked = self._asked()
        answers = self.rollouts.greedy(asked)
        if all(_can_be_checked(task) for task in asked):
            rights = {"greedy_before": self.answered, "greedy_after": answers}
            metrics |= {name: statistics.fmean(answer.right for answer in of) for name, of in rights.items()}
        gain = paired_difference(self.before, after)
        now = self._guarded([*self.parents, self.step.stack.name])
        rises = {name: paired_difference(now[name], before).mean for name, before in self.losses_before.items()}
        verdict = decide_aligned(gain, self.training.min_improvement_errors, rises, self.entry.max_loss_rise)
        metrics |= {f"{RISE}{name}": rise for name, rise in rises.items()}
        examples = _examples(asked, self.answered, answers)
        return Judged(1 - token_mean(self.before), 1 - token_mean(after), gain, verdict, metrics, examples)

    def _guarded(self, own: Sequence[str]) -> dict[str, list[RowLoss]]:
        """Losses of this domain's validation rows under ``own``, and of every closed domain's under its own stacks and
        those of this domain among ``own``."""
        session, domain = self.session, self.step.stack.domain
        session.stacked.fire(own)
        losses = {domain: session.score(session.rows(domain).validation)}
        ours = [name for name in own if name in session.stacked.of(domain)]
        for record in session.store.domains():
            session.stacked.fire([*session.stacked.of(record.domain), *ours])
            losses[record.domain] = session.score(session.rows(record.domain).validation)
        session.stacked.fire(own)
        return losses


class ByPreferences(Aligned):
    """The share of pairs of which the chosen answer gained on the rejected one over the parent, which is at a half by
    definition."""

    def _asked(self) -> list[Task]:
        pairs = _pairs(self.decision[:SHOWN])
        return [Task(pair.chosen, Question(pair.prompt, "", UNCHECKED)) for pair in pairs]

    def _before(self) -> list[RowLoss]:
        self.reference_B2 = log_probabilities(self.session, _pairs(self.decision))
        return [RowLoss(0.5, 1)] * len(self.decision)

    def _after(self) -> tuple[list[RowLoss], dict[str, float]]:
        pairs = _pairs(self.decision)
        logps_B2 = log_probabilities(self.session, pairs)
        gained_B2 = logps_B2 - self.reference_B2
        return wrong(gained_B2[:, 0], gained_B2[:, 1]), {
            "ranked_before": 1 - token_mean(ranked_wrong(self.reference_B2, pairs)),
            "ranked_after": 1 - token_mean(ranked_wrong(logps_B2, pairs)),
            "chosen_gain": float(gained_B2[:, 0].mean()),
            "rejected_gain": float(gained_B2[:, 1].mean()),
        }

    def _objective(self, losses: Losses, seed: int) -> Objective:
        rows = _pairs(self.rows.train), _pairs(self.selection)
        return Preferences(self.session, self.entry, self.training, losses, *rows, seed)


class ByRewards(Aligned):
    """The share of drawn answers that are right, which is what is learned for, by the same draws before and after."""

    def _asked(self) -> list[Task]:
        return _tasks(self.decision)

    def _before(self) -> list[RowLoss]:
        return drawn_wrong(self.rollouts, _tasks(self.decision))

    def _after(self) -> tuple[list[RowLoss], dict[str, float]]:
        return drawn_wrong(self.rollouts, _tasks(self.decision)), {}

    def _objective(self, losses: Losses, seed: int) -> Objective:
        rows = _tasks(self.rows.train), _tasks(self.selection)
        return Rewards(self.session, self.entry, self.training, losses, self.rollouts, *rows, seed)


# By the objective of an entry of a domain's rounds.
ALIGNED: Mapping[str, type[Aligned]] = {DPO: ByPreferences, GRPO: ByRewards}


def _can_be_checked(task: Task) -> bool:
    return task.question.check != UNCHECKED


def _examples(asked: Sequence[Task], answered: Sequence[Answer], answers: Sequence[Answer]) -> tuple[BeforeAfter, ...]:
    """A few answers before and after, those first that were right once and wrong once."""
    found = [
        BeforeAfter(
            task.question.prompt,
            was.text,
            now.text,
            was.right if _can_be_checked(task) else None,
            now.right if _can_be_checked(task) else None,
        )
        for task, was, now in zip(asked, answered, answers, strict=True)
    ]
    changed = sorted(found, key=lambda example: example.right_before == example.right_after)
    return tuple(changed[:SHOWN])


def _pairs(rows: Sequence[Pair | Task]) -> list[Pair]:
    return [row for row in rows if isinstance(row, Pair)]


def _tasks(rows: Sequence[Pair | Task]) -> list[Task]:
    return [row for row in rows if isinstance(row, Task)]
