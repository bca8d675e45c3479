"""Medical rows from the ICD-10-CM classification: where a diagnosis belongs."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from bs_cluster.data.rows import Check, Sample

CATEGORIES = 800


@dataclass(frozen=True)
class Category:
    """A three-character category of the tabular list, and the title of its chapter."""

    code: str
    title: str
    chapter: str


def read_categories(path: Path) -> list[Category]:
    """Every category in the classification's tabular XML, in its order.

    The file is read directly: the package that ships it builds its whole tree at import, seconds for what takes
    0.4 s here.
    """
    root = ET.parse(path).getroot()
    return [
        Category(_text(node, "name"), _text(node, "desc"), _without_range(_text(chapter, "desc")))
        for chapter in root.iter("chapter")
        for section in chapter.iter("section")
        for node in section.findall("diag")
    ]


def _text(node: ET.Element, tag: str) -> str:
    return " ".join((node.findtext(tag) or "").split())


def _without_range(title: str) -> str:
    """A title without the code range after it: ``Neoplasms (C00-D49)`` is ``Neoplasms``."""
    return re.sub(r"\s*\([A-Z0-9]+-[A-Z0-9]+\)$", "", title)


def icd_samples(path: Path, seed: int) -> list[Sample]:
    """Which chapter lists a category, of a sample of them: what a small base can be right about, where codes, broader
    diagnoses and synonyms teach it to repeat what was asked. Each has one answer."""
    asked = [
        Sample(f"Which chapter of ICD-10-CM lists {category.title}?", f"{category.chapter}.", Check("exact"))
        for category in read_categories(path)
    ]
    return random.Random(f"icd:{seed}").sample(asked, CATEGORIES)
