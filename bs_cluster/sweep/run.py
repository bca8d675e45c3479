"""Carries the sweep's plan out on Ray actors, and the two passes that go with it: routed losses and router states.

An evaluator is a Ray actor handle with ``score(rows, weights) -> list[RowLoss]`` and
``encode(prompts) -> list[np.ndarray]`` (``bs_cluster.inference``). What to measure, in which batches and what it
means is decided elsewhere, by pure functions; this file only keeps evaluators busy and survives their deaths.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError

from bs_cluster.config.schema import SweepSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.errors import ClusterResourceError
from bs_cluster.records import RowLoss
from bs_cluster.store import SweepArea
from bs_cluster.sweep.combinations import active_mask, mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.plan import plan_work
from bs_cluster.sweep.search import next_requests

log = logging.getLogger(__name__)

Item = TypeVar("Item")

BATCHES_PER_EVALUATOR = 2  # one at work and one queued, so that an evaluator never waits for the driver
POLL_S = 5.0
PROBE_PAUSE_S = 0.5
STALL_S = 1800.0  # covers loading a 12B base anew after a restart, and any one batch


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
    sweep loses only the batches in flight. ``on_progress(done, total)`` counts outcomes; under a beam the total
    grows as the search goes on. Raises ClusterResourceError when no evaluator is left or a batch cannot be scored.
    """
    table = OutcomeTable([row.id for row in rows], [row.domain for row in rows], domains)
    if (earlier := area.read()) is not None:
        table.update(OutcomeTable.from_arrow(earlier))
    lengths = [len(row.input_ids) for row in rows]
    pool = EvaluatorPool(evaluators, settings.max_retries)

    def score(evaluator: Any, requests: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        weights = [mask_weights(mask, len(domains)) for _, mask in requests]
        return evaluator.score.remote([rows[row] for row, _ in requests], weights)

    while requests := next_requests(table, settings):
        total = len(table) + len(requests)
        on_progress(len(table), total)
        batches = [batch.requests for batch in plan_work(requests, lengths, settings.batch_tokens)]
        for finished, losses in pool.map(score, batches):
            _write_part(area, table, finished, losses)
            for (row, mask), loss in zip(finished, losses, strict=True):
                table.record(row, mask, loss)
            on_progress(len(table), total)
    return table


def score_rows(
    evaluators: Sequence[Any], rows: Sequence[EncodedRow], weights_BD: np.ndarray, settings: SweepSection
) -> list[RowLoss]:
    """Loss of each row under its own gate weights (B, D), in row order: how routed loss is measured."""
    weights = [[float(weight) for weight in row] for row in weights_BD]
    requests = [(index, active_mask(row)) for index, row in enumerate(weights)]
    batches = [b.requests for b in plan_work(requests, [len(row.input_ids) for row in rows], settings.batch_tokens)]

    def score(evaluator: Any, batch: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        return evaluator.score.remote([rows[index] for index, _ in batch], [weights[index] for index, _ in batch])

    return _in_order(EvaluatorPool(evaluators, settings.max_retries).map(score, batches))


def encode_prompts(
    evaluators: Sequence[Any], prompts: Sequence[Sequence[int]], settings: SweepSection
) -> list[np.ndarray]:
    """The base's router states of each tokenised prompt, (T, H) each, in prompt order."""
    requests = [(index, 0) for index in range(len(prompts))]
    batches = [b.requests for b in plan_work(requests, [len(prompt) for prompt in prompts], settings.batch_tokens)]

    def encode(evaluator: Any, batch: Sequence[tuple[int, int]]) -> ray.ObjectRef:
        return evaluator.encode.remote([prompts[index] for index, _ in batch])

    return _in_order(EvaluatorPool(evaluators, settings.max_retries).map(encode, batches))


def _in_order(finished: Iterator[tuple[tuple[tuple[int, int], ...], list[Any]]]) -> list[Any]:
    answers = {index: answer for batch, results in finished for (index, _), answer in zip(batch, results, strict=True)}
    return [answers[index] for index in range(len(answers))]


def _write_part(
    area: SweepArea, table: OutcomeTable, requests: Sequence[tuple[int, int]], losses: Sequence[RowLoss]
) -> None:
    """One batch as a Parquet part, named by what was asked, so that a batch measured again replaces itself."""
    part = OutcomeTable(table.row_ids, table.row_domains, table.domains)
    for (row, mask), loss in zip(requests, losses, strict=True):
        part.record(row, mask, loss)
    asked = json.dumps(sorted((table.row_ids[row], mask) for row, mask in requests))
    area.write_part(hashlib.sha256(asked.encode()).hexdigest()[:20], part.to_arrow())


@dataclass
class _Work(Generic[Item]):
    """A batch, and how many evaluators died while they worked on it."""

    items: tuple[Item, ...]
    deaths: int = 0


@dataclass
class _Seat:
    """One evaluator: the probe that tells when it is up (again), then its calls in the order submitted."""

    evaluator: Any
    probe: ray.ObjectRef | None
    flights: deque[tuple[ray.ObjectRef, _Work]] = field(default_factory=deque)


class EvaluatorPool:
    """Hands batches to whichever evaluator is free.

    When an evaluator dies its batches go back to the queue. If Ray restarts it (``max_restarts``) it is used again
    once it is up, else it is given up. The batch that an evaluator was at when it died is retried ``max_retries``
    times. A batch that does not fit a device's memory is halved. Any other error of an evaluator is a bug, and is
    raised as it is.
    """

    def __init__(self, evaluators: Sequence[Any], max_retries: int, stall_s: float = STALL_S):
        if not evaluators:
            raise ClusterResourceError("no evaluator to work on; raise sweep.evaluators or the cluster's max_workers")
        self._seats = [_Seat(evaluator, _probe(evaluator)) for evaluator in evaluators]
        self._max_retries = max_retries
        self._stall_s = stall_s

    def map(
        self, call: Callable[[Any, Sequence[Item]], ray.ObjectRef], batches: Sequence[Sequence[Item]]
    ) -> Iterator[tuple[tuple[Item, ...], list[Any]]]:
        """Yield (items, results) as batches finish, in any order; ``call`` submits one batch to one evaluator, which
        must answer with one result per item. Raises ClusterResourceError when nothing finishes for ``stall_s``.
        """
        queue = deque(_Work(tuple(batch)) for batch in batches)
        last_result = time.monotonic()
        while queue or any(seat.flights for seat in self._seats):
            self._submit(call, queue)
            seat, ref = self._next_event()
            if seat is not None and ref is not None:
                try:
                    answer = ray.get(ref)
                except (RayActorError, OutOfMemoryError) as error:
                    queue.extendleft(reversed(self._after_death(seat, error)))
                except torch.OutOfMemoryError as error:
                    queue.extendleft(_halves(_take(seat, ref), error))
                else:
                    if ref == seat.probe:
                        seat.probe = None
                    else:
                        items = _take(seat, ref).items
                        assert len(answer) == len(items), f"{len(items)} items asked, {len(answer)} answered"
                        last_result = time.monotonic()
                        yield items, answer
            self._check_stall(last_result, len(queue))

    def _submit(self, call: Callable[[Any, Sequence[Any]], ray.ObjectRef], queue: deque[_Work]) -> None:
        """Fill the seats breadth first, so that the last batches spread over all evaluators."""
        for depth in range(BATCHES_PER_EVALUATOR):
            for seat in self._seats:
                if queue and seat.probe is None and len(seat.flights) == depth:
                    work = queue.popleft()
                    seat.flights.append((call(seat.evaluator, work.items), work))

    def _next_event(self) -> tuple[_Seat | None, ray.ObjectRef | None]:
        """A finished call or probe, or nothing after ``POLL_S``."""
        seat_of = {ref: seat for seat in self._seats for ref, _ in seat.flights}
        seat_of |= {seat.probe: seat for seat in self._seats if seat.probe is not None}
        ready, _ = ray.wait(list(seat_of), num_returns=1, timeout=POLL_S)
        return (seat_of[ready[0]], ready[0]) if ready else (None, None)

    def _after_death(self, seat: _Seat, error: Exception) -> list[_Work]:
        """Take the seat's batches back. Only the first was being worked on; the others are not to blame."""
        works = [work for _, work in seat.flights]
        seat.flights.clear()
        if works:
            works[0].deaths += 1
            log.warning("an evaluator died at a batch of %d rows: %s", len(works[0].items), _gist(error))
            if works[0].deaths > self._max_retries:
                raise ClusterResourceError(
                    f"a batch of {len(works[0].items)} rows ended {works[0].deaths} evaluators; lower "
                    f"sweep.batch_tokens or give evaluators more memory. Last: {_gist(error)}"
                ) from error
        if isinstance(error, ActorDiedError):
            self._seats.remove(seat)
            if not self._seats:
                raise ClusterResourceError(
                    "every evaluator died and Ray will not restart them; start the sweep again, it goes on where it "
                    f"stopped. Last: {_gist(error)}"
                ) from error
        else:
            time.sleep(PROBE_PAUSE_S)
            seat.probe = _probe(seat.evaluator)
        return works

    def _check_stall(self, last_result: float, queued: int) -> None:
        if time.monotonic() - last_result > self._stall_s:
            flying = sum(len(seat.flights) for seat in self._seats)
            away = sum(seat.probe is not None for seat in self._seats)
            raise ClusterResourceError(
                f"no batch finished for {self._stall_s:.0f} s: {flying} at work, {queued} queued, {away} of "
                f"{len(self._seats)} evaluators starting; see their logs, then start the sweep again"
            )


def _probe(evaluator: Any) -> ray.ObjectRef:
    """Answers once the evaluator is constructed; fails as a call would while it is away. Every Ray actor has it."""
    return evaluator.__ray_ready__.remote()


def _take(seat: _Seat, ref: ray.ObjectRef) -> _Work:
    """Remove and return the work behind ``ref``."""
    flight = next(flight for flight in seat.flights if flight[0] == ref)
    seat.flights.remove(flight)
    return flight[1]


def _halves(work: _Work, error: Exception) -> list[_Work]:
    if len(work.items) == 1:
        raise ClusterResourceError(
            "one row alone does not fit an evaluator's memory; lower data.max_length or give it a larger device"
        ) from error
    middle = len(work.items) // 2
    return [_Work(work.items[:middle], work.deaths), _Work(work.items[middle:], work.deaths)]


def _gist(error: Exception) -> str:
    """First and last line of Ray's long messages: what happened to the actor, and the exception behind it, if any."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"
