"""Math and reasoning rows that reasoning-gym generates, each with an answer that was computed and not guessed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any

from bs_cluster.errors import DataError

Item = dict[str, Any]
Pair = tuple[str, str]

ITEMS_PER_TASK = 220


def gym_items(task: str, size: int, seed: int, **settings: Any) -> Iterator[Item]:
    """``size`` items of a reasoning-gym task: ``question``, ``answer``, ``metadata``. Item i depends on seed + i only,
    so that a larger size keeps the items of a smaller one."""
    try:
        import reasoning_gym  # noqa: PLC0415 - an optional package, two seconds to import
        from reasoning_gym.factory import DATASETS  # noqa: PLC0415 - the same
    except ImportError as error:
        raise DataError("reasoning-gym is not installed; pip install 'bs-cluster[embedded]'") from error
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3)
        raise DataError(f"reasoning-gym has no task {task!r}; close: {', '.join(close) or 'none'}")
    dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **settings)
    return (dataset[index] for index in range(size))


# Completions restate what was asked before the answer: a supervised completion of a single digit gives a stack
# almost nothing to learn from a row and a gradient that is mostly noise.


def _question(item: Item) -> str:
    """The question without the wish for a bare answer, which these completions would not follow."""
    return re.sub(r"\s*(?:Give only|Give the result|\(Answer Yes).*$", "", item["question"], flags=re.DOTALL)


def _equation(item: Item) -> Pair:
    return _question(item), f"{item['metadata']['expression']} = {item['answer']}"


def _of_numbers(name: str) -> Callable[[Item], Pair]:
    def pair(item: Item) -> Pair:
        numbers = ", ".join(map(str, item["metadata"]["numbers"]))
        return _question(item), f"{name}({numbers}) = {item['answer']}"

    return pair


def _variable(item: Item) -> Pair:
    return _question(item), f"{item['metadata']['variable']} = {item['answer']}"


def _fraction(item: Item) -> Pair:
    meta = item["metadata"]
    return _question(item), f"{meta['numerator']}/{meta['denominator']} = {item['answer']}"


def _factors(item: Item) -> Pair:
    number = item["metadata"]["number"]
    return f"Find the prime factorization of {number}.", f"{number} = {item['answer']}"


def _legs(item: Item) -> Pair:
    question = item["question"].rpartition("Now, ")[2]
    return question[0].upper() + question[1:], f"There are {item['answer']} legs in total."


def _word_problem(item: Item) -> Pair:
    return _question(item), f"The answer is {item['answer']}."


def _syllogism(item: Item) -> Pair:
    conclusion = item["metadata"]["conclusion"]
    conclusion = conclusion[0].lower() + conclusion[1:]
    follows = "it follows" if item["answer"] == "Yes" else "it does not follow"
    return _question(item), f"{item['answer']}, {follows} that {conclusion}."


def _sequence(item: Item) -> Pair:
    shown = item["question"].removesuffix(", ?")
    return f"Which number comes next: {item['question']}", f"{shown}, {item['answer']}"


def _reversal(item: Item) -> Pair:
    question = item["question"].rpartition("\n\n")[2]
    return question, item["answer"]


def _letters(item: Item) -> Pair:
    letter, count = item["metadata"]["target_letter"], item["answer"]
    return item["question"], f'The letter "{letter}" appears {count} {"time" if count == "1" else "times"}.'


def _plain(item: Item) -> Pair:
    return item["question"], str(item["answer"])


Task = tuple[str, dict[str, Any], Callable[[Item], Pair]]

# Numbers small enough that the answer can be worked out in a few tokens.
MATH_TASKS: tuple[Task, ...] = (
    ("basic_arithmetic", {"max_terms": 4, "max_digits": 2}, _equation),
    ("chain_sum", {"max_digits": 3}, _equation),
    ("products", {"max_digits": 2}, _equation),
    ("gcd", {"max_value": 200}, _of_numbers("gcd")),
    ("lcm", {"max_value": 40}, _of_numbers("lcm")),
    ("simple_equations", {"max_value": 30}, _variable),
    ("fraction_simplification", {"styles": ("plain",), "max_value": 50, "max_factor": 12}, _fraction),
    ("prime_factorization", {}, _factors),
    ("leg_counting", {"max_animals": 3}, _legs),
    ("gsm_symbolic", {}, _word_problem),
)
# Left out though they look fitting: family_relationships confuses who is whose in-law, propositional_logic has no
# stored answer, knights_knaves fails on small settings, time_intervals depends on the day it runs.
REASONING_TASKS: tuple[Task, ...] = (
    ("syllogism", {}, _syllogism),
    ("aiw", {}, _word_problem),
    ("number_sequence", {}, _sequence),
    ("number_filtering", {"max_numbers": 5, "max_decimals": 2}, _plain),
    ("calendar_arithmetic", {}, _plain),
    ("word_sequence_reversal", {"max_words": 6}, _reversal),
    ("letter_counting", {"max_words": 8}, _letters),
)


def gym_pairs(tasks: tuple[Task, ...], seed: int) -> list[Pair]:
    """Prompt and completion of every task's items."""
    return [
        to_pair(item)
        for task, settings, to_pair in tasks
        for item in gym_items(task, ITEMS_PER_TASK, seed, **settings)
        if item["answer"] is not None
    ]
