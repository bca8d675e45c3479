"""Text that no built-in domain is about, from what is installed: there the base alone should answer.

A meta-router that only ever sees its own domains cannot learn when to stay out. Some kinds are for learning, others
are kept for judging (``sweep.foreign`` of a config says which), so that what is judged is a kind never met.
"""

from __future__ import annotations

import importlib.metadata
import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from bs_cluster.data.procedural import gym_check, gym_items
from bs_cluster.data.rows import Check, Sample
from bs_cluster.errors import DataError

Pair = tuple[str, str]

ITEMS_PER_TASK = 80
EUROPEAN = ("dutch", "french", "german", "italian", "portuguese", "spanish")
OTHER_SCRIPTS = ("chinese", "hindi", "japanese", "korean", "persian", "ukrainian")
# Not every puzzle of reasoning-gym is the same in every process: some go through sets of words.
GAMES = ("sentence_reordering", "palindrome_generation", "word_sorting")
# Packages that every installation has, whose texts are long.
WITH_LICENCES = ("torch", "ray", "mlflow", "transformers")
WITH_README = ("torch", "transformers", "peft", "datasets", "mlflow", "ray")
# Blocks of characters with telling names; the thousands of CJK ideographs have none.
CHARACTERS = ((0xA1, 0x250), (0x370, 0x400), (0x2190, 0x2400), (0x25A0, 0x27C0))


def talk_pairs(corpus: Path, languages: tuple[str, ...]) -> list[Pair]:
    """Lines of conversation and their replies in these languages; ``corpus`` is chatterbot-corpus' data folder."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    pairs: list[Pair] = []
    for path in (path for language in languages for path in sorted((corpus / language).glob("*.yml"))):
        file = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        talks = [talk for talk in file["conversations"] if isinstance(talk, list)]
        pairs += [(str(said), str(reply)) for talk in talks for said, reply in pairwise(talk)]
    return pairs


def licence_pairs() -> list[Pair]:
    """Sentences of licences: the first half, and how it goes on."""
    files = [file for name in WITH_LICENCES for file in _files(name) if re.search(r"LICEN[CS]E|NOTICE", file.name)]
    return list(_continued(" ".join(path.read_text(encoding="utf-8", errors="replace") for path in files)))


def readme_pairs() -> list[Pair]:
    """Sentences of package descriptions: the first half, and how it goes on."""
    texts = [str(importlib.metadata.metadata(name).json.get("description", "")) for name in WITH_README]
    return list(_continued(re.sub(r"[#*`|<>]|https?://\S+|\[!\S+", " ", " ".join(texts))))


def manual_pairs() -> list[Pair]:
    """Sentences of the Python language reference: the first half, and how it goes on."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte of text

    return list(_continued(" ".join(topics[name] for name in sorted(topics))))


def character_samples() -> list[Sample]:
    """What a character is called in Unicode: one name each."""
    found = ((chr(point), unicodedata.name(chr(point), "")) for low, high in CHARACTERS for point in range(low, high))
    return [
        Sample(f"What is the Unicode name of the character {char}", name.capitalize() + ".", Check("exact"))
        for char, name in found
        if name
    ]


def puzzle_samples(tasks: tuple[str, ...], seed: int) -> list[Sample]:
    """reasoning-gym puzzles of kinds that no built-in domain holds."""
    return [
        Sample(item["question"].rpartition("\n\n")[2].strip(), str(item["answer"]), gym_check(task, item, "line"))
        for task in tasks
        for item in gym_items(task, ITEMS_PER_TASK, seed)
    ]


def _files(distribution: str) -> list[Path]:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(f"the package {distribution} is not installed; pip install 'bs-cluster[embedded]'") from error
    return sorted(Path(str(file.locate())) for file in files if ".dist-info/" in str(file))


def _continued(text: str) -> Iterator[Pair]:
    """Every sentence of ten to thirty words, cut in the middle. A sentence met before is left out."""
    seen: set[str] = set()
    for sentence in re.split(r"(?<=[.;:])\s+", " ".join(text.split())):
        words = sentence.split()
        if 10 <= len(words) <= 30 and sentence not in seen and sentence[0].isalpha():
            seen.add(sentence)
            middle = len(words) // 2
            yield f"Continue: {' '.join(words[:middle])}", " ".join(words[middle:])


def foreign_samples(kind: str, corpus: Path, seed: int) -> list[Sample]:
    """Every row of a foreign kind (a key of ``FOREIGN``); ``corpus`` is chatterbot-corpus' data folder."""
    return FOREIGN[kind](corpus, seed)


def _unchecked(pairs: list[Pair]) -> list[Sample]:
    """Talk and sentences go on in many ways, and nothing can tell which is right."""
    return [Sample(*pair) for pair in pairs]


FOREIGN: dict[str, Callable[[Any, int], list[Sample]]] = {
    "european": lambda corpus, seed: _unchecked(talk_pairs(corpus, EUROPEAN)),
    "licences": lambda corpus, seed: _unchecked(licence_pairs()),
    "characters": lambda corpus, seed: character_samples(),
    "ciphers": lambda corpus, seed: puzzle_samples(("caesar_cipher", "spell_backward", "bitwise_arithmetic"), seed),
    "scripts": lambda corpus, seed: _unchecked(talk_pairs(corpus, OTHER_SCRIPTS)),
    "readmes": lambda corpus, seed: _unchecked(readme_pairs()),
    "manual": lambda corpus, seed: _unchecked(manual_pairs()),
    "games": lambda corpus, seed: puzzle_samples(GAMES, seed),
}
