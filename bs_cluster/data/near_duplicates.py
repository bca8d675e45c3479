"""Rows that say nearly the same as a held-out row are left out, so that no loss is measured on what was trained on.

Two rows are compared by the words of prompt and completion together, each word weighing its inverse document
frequency: what a template repeats in every row weighs nothing, what a row is about weighs most. So the two directions
of one fact are near ("What is the category of cholera?" A00. "What does the category A00 stand for?" Cholera.) though
few of their phrases agree, and two facts in one wording are not. The measure is the weighted Jaccard index, shared
weight over united.

Only held-out rows are indexed. A pair at least as alike as the threshold shares one of the row's rarest words that
make up ``1 - threshold`` of its weight (the prefix filter of All-Pairs, Bayardo et al. 2007), so few pairs are looked
at, and the result is exact and depends on the rows alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bs_cluster.data.rows import Row

_WORD = re.compile(r"\w+(?:[.\-]\w+)*")
MAX_WORDS = 1000  # of a row; what is said beyond does not make two rows differ


@dataclass(frozen=True)
class Splits:
    """One domain's rows on their way out."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    sweep: tuple[Row, ...]

    @property
    def size(self) -> int:
        return len(self.train) + len(self.validation) + len(self.sweep)


def drop_near_duplicates(domains: Sequence[Splits], threshold: float) -> list[Splits]:
    """The splits without every row that is near one held out before it, in any domain.

    Held out first are all sweep rows, then all validation rows, each in the order given; then come the training rows,
    near to which others may stay. A row never changes its split, so nothing that was trained on is ever held out.
    """
    rows = [row for splits in domains for row in (*splits.train, *splits.validation, *splits.sweep)]
    words = {id(row): words_of(row) for row in rows}
    frequency = Counter(word for found in words.values() for word in found)
    weight = {word: math.log(len(rows) / count) for word, count in frequency.items()}
    index = HeldOut(weight, threshold)

    def held_out(some: Iterable[Row]) -> tuple[Row, ...]:
        return tuple(row for row in some if index.add(words[id(row)]))

    sweep = [held_out(splits.sweep) for splits in domains]
    validation = [held_out(splits.validation) for splits in domains]
    train = [tuple(row for row in splits.train if not index.near(words[id(row)])) for splits in domains]
    return [Splits(*parts) for parts in zip(train, validation, sweep, strict=True)]


class HeldOut:
    """Held-out rows by their words. ``weight`` is each word's inverse document frequency."""

    def __init__(self, weight: dict[str, float], threshold: float):
        self._weight = weight
        self._threshold = threshold
        self._rows: list[tuple[frozenset[str], float]] = []
        self._by_word: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, words: frozenset[str]) -> bool:
        """Hold a row of these words out, unless it is near one that is."""
        if self.near(words):
            return False
        self.hold(words)
        return True

    def hold(self, words: frozenset[str]) -> None:
        """Hold a row of these words out, whatever it is near."""
        for word in words:
            self._by_word[word].append(len(self._rows))
        self._rows.append((words, self._total(words)))

    def near(self, words: frozenset[str]) -> bool:
        """Whether a row that is held out is at least as alike as the threshold."""
        total = self._total(words)
        if total == 0:
            return False
        looked_at: set[int] = set()
        passed = 0.0
        for word in sorted(words, key=lambda word: (-self._weight[word], word)):
            if passed > (1 - self._threshold) * total:
                return False
            passed += self._weight[word]
            for number in self._by_word.get(word, ()):
                if number not in looked_at:
                    looked_at.add(number)
                    other, other_total = self._rows[number]
                    shared = self._total(words & other)
                    if shared >= self._threshold * (total + other_total - shared):
                        return True
        return False

    def _total(self, words: Iterable[str]) -> float:
        return math.fsum(self._weight[word] for word in words)


def words_of(row: Row) -> frozenset[str]:
    """The words by which a row is compared, prompt and completion together."""
    return frozenset(_WORD.findall(f"{row.prompt}\n{row.completion}".casefold())[:MAX_WORDS])
