"""Carries the sweep's plan out on Ray actors, and the passes that go with it: router states, answers in words.

An evaluator is a Ray actor handle with ``score(rows, weights) -> Sequence[RowLoss]``,
``encode(prompts, pooled) -> list[np.ndarray]`` and ``answer(prompts, weights) -> list[str]``
(``bs_cluster.inference``). What to measure, in which batches and what
it means is decided elsewhere, by pure functions; this file only hands it to the pool and writes down what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray

from bs_cluster.config.schema import SweepSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.errors import IntegrityError
from bs_cluster.store import SweepArea
from bs_cluster.sweep.combinations import active_mask, weights_of_each
from bs_cluster.sweep.parts import Measured, PartWriter
from bs_cluster.sweep.plan import AnswerRequest, GateWeights, plan_answers, plan_work
from bs_cluster.sweep.pool import EvaluatorPool
from bs_cluster.sweep.search import first_outcomes, next_requests
from bs_cluster.sweep.shards import SHARD_OUTCOMES, Shard, read_shards

Progress = Callable[[int, int], None]


def run_sweep(
    evaluators: Sequence[Any],
    rows: Sequence[EncodedRow],
    domains: Sequence[str],
    settings: SweepSection,
    area: SweepArea,
    on_progress: Progress,
    shard_outcomes: int = SHARD_OUTCOMES,
) -> Iterator[Shard]:
    """Measure every combination that the search asks for, shard by shard of ``rows``; each is yielded when done.

    Outcomes are written to ``area`` as they come (``PartWriter``), all of them by the end; what ``area`` holds already
    is not measured again. ``on_progress(done, total)`` counts outcomes; under an adaptive search the total grows as it
    goes on. Raises ClusterResourceError when no evaluator is left or a batch cannot be scored.
    """
    least, done = first_outcomes(settings, len(domains)), 0
    with PartWriter(area) as writer:
        for shard in read_shards(rows, domains, settings, area, shard_outcomes):
            later = least * (len(rows) - shard.places.stop)

            def told(own: int, of: int, before: int = done, later: int = later) -> None:
                on_progress(before + own, before + of + later)

            while len(requests := next_requests(shard.table, settings)):
                measure(evaluators, shard, requests, settings, writer, told)
            done += len(shard.table)
            yield shard


def measure(
    evaluators: Sequence[Any],
    shard: Shard,
    requests: np.ndarray,
    settings: SweepSection,
    writer: PartWriter,
    on_progress: Progress,
) -> None:
    """Measure these (row index, mask) pairs (N, 2) of a shard into its table and to ``writer``."""
    table, rows = shard.table, shard.rows

    def score(evaluator: Any, batch: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        weights = weights_of_each([mask for _, mask in batch], len(table.domains))
        return evaluator.score.remote(tuple(rows[row] for row, _ in batch), weights)  # Ray takes a list apart

    done, total = len(table), len(table) + len(requests)
    on_progress(done, total)
    batches = plan_work(requests, [len(row.input_ids) for row in rows], settings.batch_tokens)
    found: list[Measured] = []
    pool = EvaluatorPool(evaluators, settings.max_retries)
    for finished, losses in pool.map(score, [batch.requests for batch in batches]):
        row_N, mask_N = np.array(finished).T
        nll_N, tokens_N = np.array([loss.nll for loss in losses]), np.array([loss.tokens for loss in losses])
        table.check(row_N, mask_N, nll_N, tokens_N)  # nothing broken is written
        found.append(Measured(table, shard.start, row_N, mask_N, nll_N, tokens_N))
        writer.add(found[-1])
        done += len(finished)
        on_progress(done, total)
    table.add(
        *(np.concatenate([getattr(part, name) for part in found]) for name in ("row_N", "mask_N", "nll_N", "tokens_N"))
    )


def score_gates(
    evaluators: Sequence[Any],
    rows: Sequence[EncodedRow],
    row_N: np.ndarray,
    gates_ND: np.ndarray,
    settings: SweepSection,
    on_progress: Progress,
) -> np.ndarray:
    """Summed losses (N,) in nats of these of ``rows``, each under its own gate weights (N, D)."""
    asked = [(place, active_mask(gates_D)) for place, gates_D in enumerate(gates_ND.tolist())]
    lengths = [len(rows[row].input_ids) for row in row_N.tolist()]
    batches = [batch.requests for batch in plan_work(asked, lengths, settings.batch_tokens)]

    def score(evaluator: Any, batch: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        places = [place for place, _ in batch]
        return evaluator.score.remote(tuple(rows[row] for row in row_N[places].tolist()), gates_ND[places])

    nll_N, done = np.full(len(row_N), np.nan), 0
    for finished, losses in EvaluatorPool(evaluators, settings.max_retries).map(score, batches):
        nll_N[[place for place, _ in finished]] = [loss.nll for loss in losses]
        done += len(finished)
        on_progress(done, len(row_N))
    if not np.isfinite(nll_N).all():
        row = rows[int(row_N[int((~np.isfinite(nll_N)).argmax())])]
        raise IntegrityError(f"row {row.id!r} has no finite loss under the meta-router's gates; a stack is broken")
    return nll_N


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
    requests: Sequence[AnswerRequest],
    settings: SweepSection,
) -> Iterator[tuple[int, GateWeights, str]]:
    """Answers to these (prompt index, gate weights) pairs as they come: index, weights, text. Each pair once."""

    def answer(evaluator: Any, batch: Sequence[AnswerRequest]) -> ray.ObjectRef:
        return evaluator.answer.remote([prompts[index] for index, _ in batch], [weights for _, weights in batch])

    batches = plan_answers(requests, [len(prompt) for prompt in prompts], settings.answer_batch)
    for asked, texts in EvaluatorPool(evaluators, settings.max_retries).map(answer, batches):
        for (index, weights), text in zip(asked, texts, strict=True):
            yield index, weights, text


def _in_order(finished: Iterator[tuple[tuple[tuple[int, int], ...], list[Any]]]) -> list[Any]:
    answers = {index: answer for batch, results in finished for (index, _), answer in zip(batch, results, strict=True)}
    return [answers[index] for index in range(len(answers))]
