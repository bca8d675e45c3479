"""Medical rows from the ICD-10-CM classification: where a diagnosis belongs, and what it includes."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bs_cluster.data.rows import Check, Sample

Pair = tuple[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """One entry of the tabular list with what surrounds it. ``parent`` is None for a three-character category."""

    code: str
    title: str
    parent: Diagnosis | None
    chapter: str
    also_called: tuple[str, ...]


def read_diagnoses(path: Path) -> list[Diagnosis]:
    """Every diagnosis in the classification's tabular XML, in its order.

    The file is read directly: the package that ships it builds its whole tree at import, seconds for what takes
    0.4 s here.
    """
    root = ET.parse(path).getroot()
    return [
        diagnosis
        for chapter in root.iter("chapter")
        for section in chapter.iter("section")
        for node in section.findall("diag")
        for diagnosis in _walk(node, None, _without_range(_text(chapter, "desc")))
    ]


def _walk(node: ET.Element, parent: Diagnosis | None, chapter: str) -> Iterator[Diagnosis]:
    diagnosis = Diagnosis(
        code=_text(node, "name"),
        title=_text(node, "desc"),
        parent=parent,
        chapter=chapter,
        also_called=tuple(note.text or "" for note in node.findall("inclusionTerm/note")),
    )
    yield diagnosis
    for child in node.findall("diag"):
        yield from _walk(child, diagnosis, chapter)


def _text(node: ET.Element, tag: str) -> str:
    return " ".join((node.findtext(tag) or "").split())


def _without_range(title: str) -> str:
    """A title without the code range after it: ``Neoplasms (C00-D49)`` is ``Neoplasms``."""
    return re.sub(r"\s*\([A-Z0-9]+-[A-Z0-9]+\)$", "", title)


def _chapter(diagnosis: Diagnosis) -> Iterator[Pair]:
    if diagnosis.parent is None:
        yield f"Which chapter of ICD-10-CM lists {diagnosis.title}?", f"{diagnosis.chapter}."


def _parent(diagnosis: Diagnosis) -> Iterator[Pair]:
    if diagnosis.parent is not None:
        parent = diagnosis.parent
        yield f"What is the broader diagnosis of {diagnosis.title}?", f"{parent.title}."


def _synonym(diagnosis: Diagnosis) -> Iterator[Pair]:
    for term in diagnosis.also_called:
        yield f"Under which diagnosis is this recorded: {term}?", f"{diagnosis.title}."


# What is asked, and how many of each: a chapter is what a small base can be right about.
QUESTIONS: tuple[tuple[Callable[[Diagnosis], Iterator[Pair]], int], ...] = (
    (_chapter, 500),
    (_parent, 200),
    (_synonym, 200),
)


def icd_samples(path: Path, seed: int) -> list[Sample]:
    """A sample of every kind of question about the diagnoses in the file. Each has one answer."""
    diagnoses = read_diagnoses(path)
    rng = random.Random(f"icd:{seed}")
    samples: list[Sample] = []
    for ask, count in QUESTIONS:
        asked = [pair for diagnosis in diagnoses for pair in ask(diagnosis)]
        samples += [Sample(*pair, Check("exact")) for pair in rng.sample(asked, min(count, len(asked)))]
    return samples
