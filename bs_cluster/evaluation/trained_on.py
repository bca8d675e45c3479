"""Rows of a task that a campaign has seen: they are left out, since nothing is measured on what was trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task
from transformers import PreTrainedTokenizerBase

from bs_cluster.data.frozen import DomainRows
from bs_cluster.data.near_duplicates import HeldOut, words_of
from bs_cluster.data.rows import Row
from bs_cluster.records import BundleManifest
from bs_cluster.store import Store


class TrainedOn:
    """The frozen rows of a bundle's domains, of all splits: the meta-router learned from those that no stack saw."""

    def __init__(
        self, store: Store, bundle: BundleManifest, tokenizer: PreTrainedTokenizerBase, threshold: float | None
    ):
        """Rows at least as alike as ``threshold`` (``data.near_duplicates``) are the same; None finds none."""
        self._threshold = threshold
        held = [DomainRows.of(record, store.get_bytes) for record in store.closings_of(bundle)] if threshold else []
        ids = [list(row.input_ids) for rows in held for row in (*rows.train, *rows.validation, *rows.sweep)]
        self._rows = [_words(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def unseen(self, task: Task, limit: int | None) -> tuple[list[int], list[int]]:
        """Places of the first ``limit`` rows of ``task`` that are like no row here, and of those left out for it."""
        docs: list[Any] = list(task.eval_docs)
        if not self._rows or self._threshold is None:
            return list(range(len(docs)))[:limit], []
        asked = [_words(doc_text(task, doc)) for doc in docs]
        count = Counter(word for words in (*self._rows, *asked) for word in words)
        every = len(self._rows) + len(asked)
        index = HeldOut({word: math.log(every / found) for word, found in count.items()}, self._threshold)
        for words in self._rows:
            index.hold(words)
        unseen: list[int] = []
        seen: list[int] = []
        for place, words in enumerate(asked):
            if len(unseen) == limit:
                break
            (seen if index.near(words) else unseen).append(place)
        return unseen, seen


def doc_text(task: Any, doc: Mapping[str, Any]) -> str:
    """A row's question, and its answer in words."""
    answer = task.doc_to_target(doc)
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(answer, int):
        choices: Sequence[str] = task.doc_to_choice(doc)
        answer = choices[answer] if 0 <= answer < len(choices) else ""
    return f"{task.doc_to_text(doc)}\n{answer}"


def _words(text: str) -> frozenset[str]:
    return words_of(Row(text, "", "", ""))
