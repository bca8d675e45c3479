"""Prompts that no single domain owns, generated with answers that were computed: two capabilities in one question.

sums in medical wording; the value of a piece of code; a chain of reasoning about a calculation; a sum asked in the
tone of a conversation; how a diagnosis' code is put into a program. Every completion ends with its answer, which
``last_number`` finds again, in a model's words too.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from bs_cluster.data.procedural import last_number
from bs_cluster.data.rows import Check, Sample

Pair = tuple[str, str]

PER_KIND = 400

DRUGS = (
    "amoxicillin",
    "ibuprofen",
    "metformin",
    "paracetamol",
    "lisinopril",
    "atorvastatin",
    "omeprazole",
    "sertraline",
)
AILMENTS = ("bronchitis", "hypertension", "type 2 diabetes", "migraine", "asthma", "gastritis", "anemia", "sciatica")
NAMES = ("Ana", "Ben", "Carla", "Dmitri", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas")
THINGS = ("marbles", "stamps", "books", "coins", "shells", "stickers")


def _doses(draw: random.Random) -> Pair:
    """Medical wording, a calculation."""
    drug, ailment = draw.choice(DRUGS), draw.choice(AILMENTS)
    dose, tablets, days = draw.choice((5, 10, 20, 50, 100, 500)), draw.randint(1, 3), draw.randint(3, 10)
    times = draw.randint(2, 4)
    ask = draw.randrange(3)
    if ask == 0:
        daily = tablets * times
        question = (
            f"A patient with {ailment} takes {daily} tablets of {drug} {dose} mg a day. What is the daily dose in mg?"
        )
        return question, f"{daily} * {dose} = {daily * dose} mg of {drug} for {ailment}."
    if ask == 1:
        question = (
            f"{drug.capitalize()} is prescribed for {ailment}: {times} tablets a day for {days} days. "
            "How many tablets must be dispensed?"
        )
        return question, f"{times} * {days} = {times * days} tablets of {drug} for {ailment}."
    question = (
        f"A vial holds {dose * times} mg of {drug}. How many doses of {dose} mg can a patient with {ailment} be given?"
    )
    return question, f"{dose * times} / {dose} = {times} doses of {drug} for {ailment}."


def _values(draw: random.Random) -> Pair:
    """Code, whose value is asked for."""
    a, b, c = draw.randint(2, 9), draw.randint(2, 9), draw.randint(2, 9)
    name = draw.choice(("f", "g", "scale", "step", "area", "total"))
    body, value = draw.choice(
        (
            (f"x * {a} + {b}", c * a + b),
            (f"x * x + {a}", c * c + a),
            (f"(x + {a}) * {b}", (c + a) * b),
            (f"{b} - x + {a}", b - c + a),
            (f"x // {a} + {b}", c // a + b),
            (f"sum(range(x)) + {a}", c * (c - 1) // 2 + a),
        )
    )
    return f"def {name}(x):\n    return {body}\n\nWhat does {name}({c}) return?", f"{name}({c}) = {value}"


def _chains(draw: random.Random) -> Pair:
    """A chain of reasoning, a calculation at its end."""
    first, second, third = draw.sample(NAMES, 3)
    thing, start, more, factor = draw.choice(THINGS), draw.randint(3, 12), draw.randint(2, 5), draw.randint(2, 3)
    middle = start * factor
    if draw.random() < 0.5:
        last, words = middle + more, f"{more} more than"
        step = f"{middle} + {more} = {last}"
    else:
        last, words = middle - more, f"{more} fewer than"
        step = f"{middle} - {more} = {last}"
    question = (
        f"{first} has {start} {thing}. {second} has {factor} times as many as {first}. "
        f"{third} has {words} {second}. How many {thing} does {third} have?"
    )
    return question, f"{second} has {start} * {factor} = {middle}, so {third} has {step}"


def _chatty(draw: random.Random) -> Pair:
    """A sum in the tone of a conversation."""
    a, b = draw.randint(11, 40), draw.randint(2, 9)
    opening = draw.choice(
        ("Hey, quick one:", "Hi there!", "Good morning!", "Can you help me?", "So, tell me:", "Hello!")
    )
    asked, value = draw.choice(
        (
            (f"I have {a} euros and spend {b}. What do I have left?", a - b),
            (f"my dog eats {b} biscuits a day. How many is that in {a} days?", a * b),
            (f"I am {a} now, how old will I be in {b} years?", a + b),
            (f"there are {a} people coming and {b} of them bring a friend. How many chairs do I need?", a + b),
        )
    )
    reply = draw.choice(("That would be {}.", "You get {}.", "I think it is {}.", "It is {}."))
    return f"{opening} {asked}", reply.format(value)


def _codings(draw: random.Random) -> Pair:
    """Diagnoses' codes inside a program."""
    codes = [
        f"{draw.choice('ABEGIJKLMNR')}{draw.randint(10, 99)}.{draw.randint(0, 9)}" for _ in range(draw.randint(3, 6))
    ]
    letter = draw.choice(codes)[0]
    count = sum(code.startswith(letter) for code in codes)
    question = (
        f"The ICD-10-CM codes of a patient are {', '.join(codes)}. "
        f"What does sum(c.startswith('{letter}') for c in codes) return?"
    )
    return question, f"sum(c.startswith('{letter}') for c in codes) = {count}"


MIXED: dict[str, Callable[[random.Random], Pair]] = {
    "doses": _doses,
    "values": _values,
    "chains": _chains,
    "chatty": _chatty,
    "codings": _codings,
}


def mixed_samples(kind: str, seed: int) -> list[Sample]:
    """Different rows of a mixed kind (a key of ``MIXED``), 400 asked for; the same for the same seed."""
    draw = random.Random(f"{kind}:{seed}")
    pairs = list(dict.fromkeys(MIXED[kind](draw) for _ in range(PER_KIND)))
    assert all(last_number(completion) for _, completion in pairs), f"a completion of {kind} has no answer to check"
    return [Sample(*pair, Check("number")) for pair in pairs]
