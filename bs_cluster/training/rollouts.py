"""Answers of the policy that learns, drawn and judged: by the training workers, or by evaluators beside them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import ray

from bs_cluster.config.rounds import RoundSection
from bs_cluster.data.aligned import Task
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.verify import is_right
from bs_cluster.events import Phase
from bs_cluster.inference.evaluator import Policy
from bs_cluster.inference.generate import Drawing, drawn_tokens, greedy_tokens, said
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.sweep.evaluators import start_evaluators, stop_evaluators
from bs_cluster.sweep.pool import EvaluatorPool
from bs_cluster.training.ranks import from_all_ranks, world_rank, world_size
from bs_cluster.training.session import Session
from bs_cluster.watchdog import pulse


class Answer(NamedTuple):
    """``tokens`` end with the end token where the answer ended."""

    tokens: tuple[int, ...]
    text: str
    right: bool


class Rollouts(Protocol):
    """Every rank calls both, and gets the same."""

    def drawn(self, tasks: Sequence[Task], seeds: Sequence[int]) -> list[Answer]:
        """An answer to each task, from its seed, at the round's temperature."""
        ...

    def greedy(self, tasks: Sequence[Task]) -> list[Answer]:
        """The likeliest answer to each, token by token."""
        ...


class ByWorkers:
    """The ranks answer, each its part of the batches, with what fires and learns on them now. Which prompts are
    answered together does not hang on the number of ranks."""

    def __init__(self, session: Session, how: Drawing):
        self.session, self.how, self.together = session, how, session.config.sweep.answer_batch

    def drawn(self, tasks: Sequence[Task], seeds: Sequence[int]) -> list[Answer]:
        return self._answers(tasks, seeds)

    def greedy(self, tasks: Sequence[Task]) -> list[Answer]:
        return self._answers(tasks, None)

    def _answers(self, tasks: Sequence[Task], seeds: Sequence[int] | None) -> list[Answer]:
        stacked, how = self.session.stacked, self.how
        stacked.base.model.eval()
        prompts = [prompt_of(task) for task in tasks]
        mine: dict[int, Answer] = {}
        with self.session.uneven():
            for number, batch in enumerate(batches_of(prompts, self.together)):
                pulse()
                if number % world_size() != world_rank():
                    continue
                asked = [prompts[i] for i in batch]
                if seeds is None:
                    tokens = greedy_tokens(stacked, asked, how.tokens)
                else:
                    tokens = drawn_tokens(stacked, asked, [seeds[i] for i in batch], how.tokens, how.temperature)
                mine |= dict(zip(batch, judged([tasks[i] for i in batch], tokens, said(stacked, tokens)), strict=True))
        of_all = {place: answer for part in from_all_ranks(mine) for place, answer in part.items()}
        return [of_all[place] for place in range(len(tasks))]


class ByEvaluators:
    """Evaluator actors answer, as many as ``sweep.evaluators`` and with what the sweep gives them, so that answering
    scales apart from training. The first rank tells them before each draw what fires and what the learning stack has
    become, hands the batches out and judges; the others wait for it. They live as long as the round.

    An answer is the one that the workers themselves would give, but for rounding: there the stack is folded.
    """

    def __init__(self, session: Session, how: Drawing, evaluators: Sequence[Any]):
        self.session, self.how, self.together = session, how, session.config.sweep.answer_batch
        self.evaluators = evaluators

    def drawn(self, tasks: Sequence[Task], seeds: Sequence[int]) -> list[Answer]:
        return self._answers(tasks, seeds)

    def greedy(self, tasks: Sequence[Task]) -> list[Answer]:
        return self._answers(tasks, None)

    def _answers(self, tasks: Sequence[Task], seeds: Sequence[int] | None) -> list[Answer]:
        found = self._asked(tasks, seeds) if world_rank() == 0 else None
        answers = from_all_ranks(found)[0]
        assert answers is not None
        return answers

    def _asked(self, tasks: Sequence[Task], seeds: Sequence[int] | None) -> list[Answer]:
        stacked, retries = self.session.stacked, self.session.config.sweep.max_retries
        policy = policy_now(stacked)
        pool = EvaluatorPool(self.evaluators, retries)
        prompts = [prompt_of(task) for task in tasks]
        tokens: dict[int, list[int]] = {}

        def call(evaluator: Any, batch: Sequence[int]) -> Any:
            own = None if seeds is None else [seeds[i] for i in batch]
            return evaluator.draw.remote([prompts[i] for i in batch], own, self.how, policy)

        for batch, drawn in pool.map(call, batches_of(prompts, self.together)):
            pulse()
            tokens |= dict(zip(batch, drawn, strict=True))
        ordered = [tokens[place] for place in range(len(tasks))]
        return judged(tasks, ordered, said(stacked, ordered))


@contextmanager
def answering(session: Session, entry: RoundSection) -> Iterator[Rollouts]:
    """Whoever answers in this round, for as long as it lasts."""
    how = Drawing(entry.answer_tokens, entry.temperature)
    if entry.rollouts == "workers":
        yield ByWorkers(session, how)
        return
    evaluators = []
    if world_rank() == 0:
        count = session.config.sweep.evaluators
        session.report(Phase(f"{count} evaluator{'s answer' if count > 1 else ' answers'} in this round"))
        evaluators = start_evaluators(session.config)
    try:
        yield ByEvaluators(session, how, evaluators)
    finally:
        stop_evaluators(evaluators)


def policy_now(stacked: StackedBase) -> Any:
    """What fires and learns now, as one copy in Ray's store for all evaluators."""
    state = stacked.tuner.composition
    config, tensors = None, {}
    if state.train is not None:
        config, tensors = stacked.tuner.peft_config[state.train].to_dict(), stacked.tuner.folded(state.train)
    return ray.put(Policy(uuid.uuid4().hex, state.firing, config, tensors))


def prompt_of(task: Task) -> tuple[int, ...]:
    return task.row.input_ids[: task.row.prompt_length]


def batches_of(prompts: Sequence[Sequence[int]], together: int) -> list[list[int]]:
    """Indices of prompts that are answered together, alike in length and at most so many."""
    longest = max(map(len, prompts), default=1)
    plan = plan_batches([len(prompt) for prompt in prompts], longest * together)
    return [batch[start : start + together] for batch in plan for start in range(0, len(batch), together)]


def judged(tasks: Sequence[Task], tokens: Sequence[Sequence[int]], texts: Sequence[str]) -> list[Answer]:
    return [
        Answer(tuple(of), text, is_right(task.question, text))
        for task, of, text in zip(tasks, tokens, texts, strict=True)
    ]
