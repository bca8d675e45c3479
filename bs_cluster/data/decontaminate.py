"""Which specialist domain a text belongs to, told by its words (the paper's decontamination, section on data).

Unlike the published scripts, keywords are matched as whole words ("api" is not in "capital"), and it is called.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bs_cluster.config.schema import DomainSection

# Domains whose sources are broad enough to hold other domains' rows. A specialist's rows are left alone: code
# that computes a polynomial is still code.
GENERALISTS = frozenset({"chat"})
MIN_HITS = 2

KEYWORDS: dict[str, tuple[str, ...]] = {
    "code": (
        "python", "javascript", "java", "typescript", "html", "css", "sql", "json", "api", "regex", "bash",
        "function", "variable", "array", "loop", "recursion", "algorithm", "compiler", "compile", "debug",
        "syntax", "programming", "source code", "script", "def ", "import ", "return ", "print(", "```",
    ),
    "math": (
        "solve", "equation", "calculate", "algebra", "geometry", "derivative", "integral", "probability",
        "theorem", "fraction", "percentage", "coefficient", "quadratic", "polynomial", "logarithm", "trigonometry",
        "matrix", "vector", "factorial", "square root", "sum of", "formula", "proof", "x =", "y =",
    ),
    "medical": (
        "symptom", "disease", "patient", "medication", "dose", "dosage", "diagnosis", "treatment", "clinical",
        "diabetes", "surgery", "vaccine", "infection", "therapy", "prescription", "cholesterol", "tumor", "cancer",
        "cardiac", "respiratory", "antibiotic", "prognosis", "chronic", "influenza", "hypertension", "insulin",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DomainWords:
    """One domain's keywords: ``words`` matches whole words (plurals too), ``marks`` are looked for as they are."""

    domain: str
    words: re.Pattern[str] | None
    marks: tuple[str, ...]

    def hits(self, text: str) -> int:
        """How many different keywords the text holds. ``text`` is casefolded."""
        found = len(set(self.words.findall(text))) if self.words else 0
        return found + sum(mark in text for mark in self.marks)


def domain_words(domains: Sequence[DomainSection]) -> list[DomainWords]:
    """The keywords of every specialist among ``domains``: its own, else the built-in list under its name."""
    specialists = [domain for domain in domains if domain.name not in GENERALISTS]
    listed = [(domain.name, domain.keywords or KEYWORDS.get(domain.name, ())) for domain in specialists]
    return [_compile(name, keywords) for name, keywords in listed if keywords]


def _compile(domain: str, keywords: Sequence[str]) -> DomainWords:
    folded = sorted({keyword.casefold() for keyword in keywords})
    words = [re.escape(word) for word in folded if word[0].isalnum() and word[-1].isalnum()]
    marks = tuple(mark for mark in folded if not (mark[0].isalnum() and mark[-1].isalnum()))
    pattern = re.compile(rf"\b({'|'.join(words)})(?:e?s)?\b") if words else None
    return DomainWords(domain, pattern, marks)


def detect_domain(text: str, specialists: Sequence[DomainWords]) -> str | None:
    """The specialist with most keyword hits in the text, at least ``MIN_HITS``; None if there is none.

    Of equals the first listed wins.
    """
    folded = text.casefold()
    hits = [specialist.hits(folded) for specialist in specialists]
    best = max(hits, default=0)
    return specialists[hits.index(best)].domain if best >= MIN_HITS else None
