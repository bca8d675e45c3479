"""The engine's thread: who waits, who runs, who has gone away. Everything that touches the model happens here.

A turn: dismiss who is gone, take in who waits as far as there is room and its stacks are here, step once. What happens
to a request is told to it by ``tell``, from this thread, in this order: ``Began``, any number of ``Piece``, then
``Ended`` or ``Failed``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from bs_cluster.errors import BrainstacksError
from bs_cluster.serving.answer_text import AnswerText
from bs_cluster.serving.engine import Engine, Row
from bs_cluster.serving.metrics import Metrics
from bs_cluster.serving.residency import Residency
from bs_cluster.serving.runtime import BundleRuntime
from bs_cluster.serving.sampling import Sampling

log = logging.getLogger(__name__)
Made = TypeVar("Made")

# Prompts that are read in one turn, in tokens with padding: so long may those under way wait for their next token.
PROMPT_TOKENS = 1024


class Busy(BrainstacksError, RuntimeError):
    """As many requests as the server takes are running or waiting."""


@dataclass(frozen=True)
class Began:
    """It runs, under these gates."""

    gates: Mapping[str, float]


@dataclass(frozen=True)
class Piece:
    text: str


@dataclass(frozen=True)
class Ended:
    """``reason`` is stop or length; ``tokens`` were generated, the end token included."""

    reason: str
    tokens: int


@dataclass(frozen=True)
class Failed:
    message: str


Event = Began | Piece | Ended | Failed


@dataclass(eq=False)
class Request:
    """A prompt in both its encodings, and how it is to be answered; without ``gates`` the meta-router decides."""

    bundle: BundleRuntime
    prompt_ids: Sequence[int]
    router_ids: Sequence[int]
    gates: Mapping[str, float] | None
    sampling: Sampling
    max_tokens: int
    stops: Sequence[str]
    tell: Callable[[Event], None]
    asked_at: float = field(default_factory=time.perf_counter)


class Scheduler:
    """At most ``engine.slots`` requests run and ``max_waiting`` more wait."""

    def __init__(self, engine: Engine, residency: Residency, max_waiting: int, metrics: Metrics):
        self.engine, self.residency, self.max_waiting, self.metrics = engine, residency, max_waiting, metrics
        self._running: dict[Row, tuple[Request, AnswerText]] = {}
        self._waiting: deque[Request] = deque()
        self._joining: Sequence[Request] = ()  # out of those who wait, being routed
        self._routed: deque[tuple[Request, Mapping[str, float]]] = deque()  # with gates, in line for their stacks
        self._freed = False  # stacks were read, or rows left: who is in line for stacks may go on
        self._gone: set[Request] = set()
        self._calls: deque[tuple[Callable[[], object], Future]] = deque()
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Raises Busy where no more may wait."""
        with self._changed:
            waiting = len(self._waiting) + len(self._routed)
            if waiting + len(self._running) >= self.engine.slots + self.max_waiting:
                raise Busy(f"{len(self._running)} requests run and {waiting} wait; try again in a while")
            self._waiting.append(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """It is told nothing more, and its slot is free before the next step."""
        with self._changed:
            self._gone.add(request)
            self._changed.notify()

    def call(self, make: Callable[[], Made]) -> Future[Made]:
        """Runs ``make`` between two steps, where the model may be changed."""
        future: Future[Made] = Future()
        with self._changed:
            self._calls.append((make, future))
            self._changed.notify()
        return future

    def stop(self) -> None:
        """Ends the thread after the step that it is at; who still runs or waits has failed."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    # --- the thread's own -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._due)
                if self._stopped:
                    break
                self._freed = False
                calls, self._calls = self._calls, deque()
            for make, future in calls:
                try:
                    future.set_result(make())
                except Exception as error:
                    future.set_exception(error)
            try:
                self._turn()
            except Exception:  # whoever asks next must still be answered
                log.exception("a step failed; the requests in it are told so")
                self._fail("the server met an error of its own; its log says which")
        self._fail("the server stops")

    def _turn(self) -> None:
        self._dismiss_gone()
        self._joining = self._admitted()
        self._routed += self._route(self._joining)
        self._joining = ()
        for request, gates in self._with_stacks():
            row = Row(request.prompt_ids, gates, request.sampling, request.max_tokens)
            self._running[row] = (request, AnswerText(request.bundle.stacked.base.tokenizer, request.stops))
            request.tell(Began(gates))
        if new := [row for row in self._running if not row.tokens]:
            with self.metrics.prompt_seconds.time():
                self.engine.join(new)
            for row in new:
                self.metrics.first_token_seconds.observe(time.perf_counter() - self._running[row][0].asked_at)
            self._tell(new)
        if self.engine.rows:
            with self.metrics.step_seconds.time():
                rows = self.engine.step()
            self._tell(rows)
        self.metrics.running.set(len(self._running))
        self.metrics.waiting.set(len(self._waiting) + len(self._routed))

    def _dismiss_gone(self) -> None:
        with self._changed:
            gone, self._gone = self._gone, set()
            self._waiting = deque(request for request in self._waiting if request not in gone)
            self._routed = deque(routed for routed in self._routed if routed[0] not in gone)
        for row in [row for row, (request, _) in self._running.items() if request in gone]:
            self.engine.leave(row)
            del self._running[row]
            self._freed = True

    def _admitted(self) -> list[Request]:
        """Who is next in line and fits: into free slots, and into the prompts that one turn reads."""
        admitted: list[Request] = []
        with self._changed:
            before = [request for request, _ in self._routed]
            while self._waiting and len(before) + len(admitted) < self.engine.free:
                joining = (*before, *admitted, self._waiting[0])
                if len(joining) > 1 and len(joining) * max(len(one.prompt_ids) for one in joining) > PROMPT_TOKENS:
                    break
                admitted.append(self._waiting.popleft())
        return admitted

    def _with_stacks(self) -> Iterator[tuple[Request, Mapping[str, float]]]:
        """Who is next in line and has all stacks in memory that it fires; whose cannot be read has failed."""
        while self._routed:
            request, gates = self._routed[0]
            in_use = {name for row, (other, _) in self._running.items() for name in other.bundle.firing(row.gates)}
            try:
                if not self.residency.hold(request.bundle.firing(gates), in_use, self._stacks_came):
                    return
            except BrainstacksError as error:
                log.warning("stacks of a request cannot be read: %s", error)
                request.tell(Failed("the stacks that this request fires cannot be read; the server's log says why"))
            else:
                yield request, gates
            self._routed.popleft()

    def _stacks_came(self) -> None:
        with self._changed:
            self._freed = True
            self._changed.notify()

    def _due(self) -> bool:
        """Whether a turn has anything to do. Who is in line for stacks can but wait until they come, or a row ends."""
        waits = bool(self._waiting) and not self._routed
        return bool(waits or self._running or self._freed or self._gone or self._calls or self._stopped)

    def _route(self, requests: Sequence[Request]) -> list[tuple[Request, Mapping[str, float]]]:
        """Each with its own gates, or those of its bundle's meta-router."""
        gates = {request: request.gates for request in requests}
        for bundle in {request.bundle for request in requests if request.gates is None}:
            own = [request for request in requests if request.gates is None and request.bundle is bundle]
            with self.metrics.routing_seconds.time():
                weights_BD = bundle.route([request.router_ids for request in own])
            for request, weights in zip(own, weights_BD.tolist(), strict=True):
                gates[request] = dict(zip(bundle.domains, weights, strict=True))
        return [(request, chosen) for request, chosen in gates.items() if chosen is not None]

    def _tell(self, rows: Iterable[Row]) -> None:
        """The newest token of each of these rows, as text."""
        for row in rows:
            request, text = self._running[row]
            pieces = [text.add(row.tokens[-1])]
            if text.stopped and not row.ended:
                self.engine.leave(row)
            elif row.ended and not text.stopped:
                pieces.append(text.rest())
            self.metrics.tokens.labels("completion").inc()
            for piece in filter(None, pieces):
                request.tell(Piece(piece))
            if row.ended or text.stopped:
                request.tell(Ended("stop" if text.stopped else row.ended or "", len(row.tokens)))
                del self._running[row]
                self._freed = True

    def _fail(self, why: str) -> None:
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
        running = {request for request, _ in self._running.values()}
        routed = [request for request, _ in self._routed]
        for request in {*running, *self._joining, *routed, *waiting}:
            request.tell(Failed(why))
        self._routed.clear()
        self.engine.clear()
        self._running.clear()
        self._joining = ()
