"""Keeps evaluators busy and survives their deaths: batches in, results out, in whatever order they finish.

An evaluator is a Ray actor handle. What to measure, in which batches and what it means is decided elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError

from bs_cluster.errors import ClusterResourceError
from bs_cluster.failpoints import failpoint

log = logging.getLogger(__name__)

Item = TypeVar("Item")

BATCHES_PER_EVALUATOR = 2  # one at work and one queued, so that an evaluator never waits for the driver
POLL_S = 5.0
PROBE_PAUSE_S = 0.5
STALL_S = 1800.0  # covers loading a 12B base anew after a restart, and any one batch


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
                    failpoint("sweep.dispatch")
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
