"""Carries the sweep's plan out on Ray actors, and the passes that go with it: router states, answers in words.

An evaluator is a Ray actor handle with ``score(rows, weights) -> list[RowLoss]``,
``encode(prompts, pooled) -> list[np.ndarray]`` and ``answer(prompts, weights) -> list[str]``
(``bs_cluster.inference``). What to measure, in which batches and what
it means is decided elsewhere, by pure functions; this file only hands it to the pool and writes down what comes back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray

from bs_cluster.config.schema import SweepSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.records import RowLoss
from bs_cluster.store import SweepArea
from bs_cluster.sweep.combinations import mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.plan import plan_answers, plan_work
from bs_cluster.sweep.pool import EvaluatorPool
from bs_cluster.sweep.search import next_requests


def run_sweep(
    evaluators: Sequence[Any],
    rows: Sequence[EncodedRow],
    domains: Sequence[str],
    settings: SweepSection,
    area: SweepArea,
    on_progress: Callable[[int, int], None],
) -> OutcomeTable:
    """Measure every combination that the search asks for, and return the outcomes in the order of ``rows``.

    Each finished batch is written to ``area`` at once; what ``area`` holds already is not measured again, so a killed
    sweep loses only the batches in flight. ``on_progress(done, total)`` counts outcomes; under an adaptive search the
    total grows as it goes on. Raises ClusterResourceError when no evaluator is left or a batch cannot be scored.
    """
    table = OutcomeTable([row.id for row in rows], [row.domain for row in rows], domains)
    if (earlier := area.read()) is not None:
        table.update(OutcomeTable.from_arrow(earlier))
    while requests := next_requests(table, settings):
        measure(evaluators, rows, table, requests, settings, area, on_progress)
    return table


def measure(
    evaluators: Sequence[Any],
    rows: Sequence[EncodedRow],
    table: OutcomeTable,
    requests: Sequence[tuple[int, int]],
    settings: SweepSection,
    area: SweepArea,
    on_progress: Callable[[int, int], None],
) -> None:
    """Measure these (row index, mask) pairs into ``table`` and ``area``."""
    domain_count = len(table.domains)

    def score(evaluator: Any, batch: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        weights = [mask_weights(mask, domain_count) for _, mask in batch]
        return evaluator.score.remote([rows[row] for row, _ in batch], weights)

    total = len(table) + len(requests)
    on_progress(len(table), total)
    lengths = [len(row.input_ids) for row in rows]
    batches = [batch.requests for batch in plan_work(requests, lengths, settings.batch_tokens)]
    for finished, losses in EvaluatorPool(evaluators, settings.max_retries).map(score, batches):
        _write_part(area, table, finished, losses)
        for (row, mask), loss in zip(finished, losses, strict=True):
            table.record(row, mask, loss)
        on_progress(len(table), total)


def encode_prompts(
    evaluators: Sequence[Any], prompts: Sequence[Sequence[int]], settings: SweepSection, pooled: bool
) -> list[np.ndarray]:
    """The base's router states of each tokenised prompt, (2H,) pooled or (T, H), float32, in prompt order."""
    requests = [(index, 0) for index in range(len(prompts))]
    batches = [b.requests for b in plan_work(requests, [len(prompt) for prompt in prompts], settings.batch_tokens)]

    def encode(evaluator: Any, batch: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        return evaluator.encode.remote([prompts[index] for index, _ in batch], pooled)

    return _in_order(EvaluatorPool(evaluators, settings.max_retries).map(encode, batches))


def generate(
    evaluators: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    requests: Sequence[tuple[int, int]],
    domain_count: int,
    settings: SweepSection,
) -> Iterator[tuple[int, int, str]]:
    """Answers to these (prompt index, mask) pairs as they come: index, mask, text. Each pair is answered once."""

    def answer(evaluator: Any, batch: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        weights = [mask_weights(mask, domain_count) for _, mask in batch]
        return evaluator.answer.remote([prompts[index] for index, _ in batch], weights)

    batches = plan_answers(requests, [len(prompt) for prompt in prompts], settings.answer_batch)
    for asked, texts in EvaluatorPool(evaluators, settings.max_retries).map(answer, batches):
        for (index, mask), text in zip(asked, texts, strict=True):
            yield index, mask, text


def _in_order(finished: Iterator[tuple[tuple[tuple[int, int], ...], list[Any]]]) -> list[Any]:
    answers = {index: answer for batch, results in finished for (index, _), answer in zip(batch, results, strict=True)}
    return [answers[index] for index in range(len(answers))]


def _write_part(
    area: SweepArea, table: OutcomeTable, requests: Sequence[tuple[int, int]], losses: Sequence[RowLoss]
) -> None:
    """One batch as a Parquet part, named by what was asked, so that a batch measured again replaces itself."""
    asked_rows = sorted({row for row, _ in requests})
    place = {row: index for index, row in enumerate(asked_rows)}
    part = OutcomeTable(
        [table.row_ids[row] for row in asked_rows], [table.owners[row] for row in asked_rows], table.domains
    )
    for (row, mask), loss in zip(requests, losses, strict=True):
        part.record(place[row], mask, loss)
    asked = json.dumps(sorted((table.row_ids[row], mask) for row, mask in requests))
    area.write_part(hashlib.sha256(asked.encode()).hexdigest()[:20], part.to_arrow())
