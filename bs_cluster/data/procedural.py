"""Math and reasoning rows that reasoning-gym generates, each with an answer that was computed and not guessed."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bs_cluster.data.rows import Check, Sample
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


def _worked(item: Item) -> Pair:
    """Step by step, the answer behind ``####``: the form of GSM8K's own solutions."""
    return _question(item), item["metadata"]["answer_cot"]


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


class Task(NamedTuple):
    """A task of reasoning-gym, its settings, its rows, and how its answer is found in a completion like theirs."""

    name: str
    settings: dict[str, Any]
    to_pair: Callable[[Item], Pair]
    find: str  # a key of ``FINDERS``
    items: int = ITEMS_PER_TASK


# Sizes at which a small base gets some answers right when it has learned how to write them: with four digits and six
# terms it has the form and never the answer.
MATH_TASKS: tuple[Task, ...] = (
    Task("chain_sum", {"max_terms": 3, "max_digits": 1}, _equation, "number"),
    Task("chain_sum", {"max_terms": 2, "min_digits": 2, "max_digits": 2}, _equation, "number"),
    Task("basic_arithmetic", {"max_terms": 3, "max_digits": 1}, _equation, "number"),
    Task("products", {"max_digits": 1}, _equation, "number"),
    Task("gcd", {"max_value": 40}, _of_numbers("gcd"), "number"),
    Task("lcm", {"max_value": 12}, _of_numbers("lcm"), "number"),
    Task("simple_equations", {"max_value": 10}, _variable, "number"),
    Task("fraction_simplification", {"styles": ("plain",), "max_value": 12, "max_factor": 6}, _fraction, "fraction"),
    Task("prime_factorization", {"max_value": 100}, _factors, "result"),
    Task("leg_counting", {"min_animals": 1, "max_animals": 2, "max_instances": 9}, _legs, "number"),
    # One in five is short enough to be kept (``builtin``): nearly as many as of three other tasks.
    Task("gsm_symbolic", {}, _worked, "worked", 2_200),
)
# Left out though they look fitting: family_relationships confuses who is whose in-law, propositional_logic has no
# stored answer, knights_knaves fails on small settings, time_intervals depends on the day it runs.
REASONING_TASKS: tuple[Task, ...] = (
    Task("syllogism", {}, _syllogism, "yes_or_no", 2 * ITEMS_PER_TASK),
    Task("aiw", {}, _word_problem, "number"),
    Task("number_sequence", {"max_complexity": 1}, _sequence, "number"),
    Task("number_filtering", {"max_numbers": 4, "max_decimals": 0}, _plain, "line"),
    Task("word_sequence_reversal", {"max_words": 4}, _reversal, "line"),
    Task("letter_counting", {"min_words": 1, "max_words": 3}, _letters, "number"),
)


def gym_samples(tasks: tuple[Task, ...], seed: int) -> list[Sample]:
    """Prompt, completion and check of every task's items."""
    return [
        Sample(*task.to_pair(item), gym_check(task.name, item, task.find))
        for task in tasks
        for item in gym_items(task.name, task.items, seed, **task.settings)
        if item["answer"] is not None
    ]


# Where an answer stands in a text of one line or more. A model that goes on after its answer has answered all the same.
def first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def last_number(text: str) -> str | None:
    """The last number of a text's first line, without the commas between thousands; None without one."""
    numbers = NUMBER.findall(first_line(text))
    return numbers[-1].replace(",", "") if numbers else None


def _last_fraction(text: str) -> str | None:
    found = re.findall(r"-?\d+/\d+", first_line(text))
    return found[-1] if found else None


def _worked_answer(text: str) -> str | None:
    """The number behind the first ``####``: a model that goes on has another question's solution after it."""
    return last_number(text.partition("####")[2])


def _yes_or_no(text: str) -> str | None:
    found = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return found[1].capitalize() if found else None


NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
FINDERS: dict[str, Callable[[str], str | None]] = {
    "number": last_number,
    "fraction": _last_fraction,
    "worked": _worked_answer,
    "yes_or_no": _yes_or_no,
    "result": lambda text: first_line(text).rpartition("=")[2].strip(),
    "line": first_line,
    "text": str.strip,
}


def gym_check(task: str, item: Item, find: str) -> Check:
    """By the task's own scorer, on what ``find`` (a key of ``FINDERS``) finds in the text."""
    entry = {name: item[name] for name in ("question", "answer", "metadata")}
    return Check("reasoning_gym", json.dumps({"task": task, "find": find, **entry}, default=str))


def gym_accepts(key: str, text: str) -> bool:
    """Whether the scorer of the item behind a check's ``key`` gives this text the full mark."""
    entry = json.loads(key)
    found = FINDERS[entry["find"]](text)
    if found is None:
        return False
    try:
        # Not more either: one of them adds up the letters that match, and rounds.
        return _scorer(entry["task"])(found, entry) == 1.0
    except Exception:  # some scorers fail on a text that is no answer of their kind
        return False


@functools.cache
def _scorer(task: str) -> Callable[[str, Item], float]:
    from reasoning_gym import get_score_answer_fn  # noqa: PLC0415 - an optional package, two seconds to import

    scorer: Any = get_score_answer_fn(task)  # declared without its parameters
    return scorer
