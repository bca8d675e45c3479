"""What a person reads while a campaign runs: one line an event, few of training steps, and never a silence."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from bs_cluster.events import (
    BundleReady,
    CheckpointTrouble,
    DomainClosed,
    Event,
    Measuring,
    NodeLeaves,
    Phase,
    RoomScarce,
    RoundEnded,
    RoundResumed,
    RoundStarted,
    StepDone,
)


def clock(seconds: float) -> str:
    """``03:07``, or ``2:15:00`` from an hour on."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes:02d}:{whole % 60:02d}"


class Console:
    """Lines begin with the time since the campaign's start. Job logs are line by line, so nothing is overwritten.

    A line of progress comes at most every ``every_s``; after ``silence_s`` without any, ``heartbeat`` says what is
    being done.
    """

    def __init__(self, every_s: float = 5.0, silence_s: float = 25.0):
        self.start = time.monotonic()
        self.every_s, self.silence_s = every_s, silence_s
        self.last_progress = -1e9
        self.last_line = self.start
        self.doing, self.doing_since = "starting", self.start

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def say(self, text: str = "") -> None:
        self.last_line = time.monotonic()
        print(f"[{clock(self.seconds)}] {text}" if text else "", flush=True)

    def begin(self, what: str) -> None:
        """From now on ``what`` is being done; the heartbeat names it."""
        if what != self.doing:
            self.doing, self.doing_since = what, time.monotonic()

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """While it lasts, no silence is longer than ``silence_s``."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(min(1.0, self.silence_s / 2)):
                now = time.monotonic()
                if now - self.last_line >= self.silence_s:
                    self.say(f"{self.doing}, {clock(now - self.doing_since)} so far")

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def show(self, event: Event) -> None:
        """One event of the workers, if it is worth a line now."""
        match event:
            case Phase():
                self.begin(event.text)
                self.say(event.text)
            case RoundStarted():
                self.begin(f"{event.stack.name:<14} loads and measures before its first step")
                self.say(f"{event.stack.name:<14} training begins")
            case RoundResumed(stack, step):
                self.say(f"{stack.name:<14} goes on after step {step}, from its checkpoint")
            case CheckpointTrouble(stack, step, why):
                self.say(f"{stack.name:<14} checkpoint of step {step}: {why}")
            case NodeLeaves(stack, step, ranks, seconds):
                when = "soon" if seconds is None else f"in {seconds:.0f} s"
                workers = f"{len(ranks)} worker{'s' if len(ranks) > 1 else ''}"
                self.say(f"{stack.name:<14} a node is taken {when}, with {workers}: checkpoint after step {step}")
            case StepDone():
                self.begin(f"{event.stack.name:<14} trains")
                self._step(event)
            case RoundEnded(outcome):
                self.begin(f"{outcome.stack.domain:<14} its next round, or its closing, begins")
                verdict = "committed" if outcome.committed else "rejected "
                self.say(
                    f"{outcome.stack.name:<14} {verdict}  {outcome.val_before:.4f} -> {outcome.val_after:.4f}"
                    f" on the {outcome.rows} rows that decide  ({clock(outcome.seconds)})"
                    f"{'' if outcome.committed else '  ' + outcome.reason}"
                )
            case RoomScarce(site, side, width, free):
                self.say(
                    f"room is scarce: earlier domains leave {free:.0%} of the {width} directions that {site} "
                    f"{'reads' if side == 'input' else 'writes'}, and no site has less; "
                    "a smaller null_space.max_share or max_rank makes a campaign's claims smaller"
                )
            case DomainClosed():
                self.begin(f"{event.domain:<14} is closed; what comes next begins")
                self.say(
                    f"{event.domain:<14} closed     alone {event.isolated:.4f}, base {event.base:.4f}"
                    " nats per completion token on all its validation rows"
                )
            case BundleReady(number, alias, reason):
                self.say(f"{'bundle':<14} {number} is {alias}: {reason}")
            case Measuring():
                self.begin(f"{event.domain:<14} measures {event.what}")
                if self._due():
                    self.say(f"{event.domain:<14} measures {event.what}  {event.batch}/{event.batches} batches")

    def _due(self) -> bool:
        """Whether a line of progress is due; if so it counts as said."""
        if time.monotonic() - self.last_progress < self.every_s:
            return False
        self.last_progress = time.monotonic()
        return True

    def _step(self, event: StepDone) -> None:
        important = event.selection_loss is not None or event.verdict != "go on" or event.step == 1
        if not self._due() and not important:
            return
        self.last_progress = time.monotonic()
        eta = event.seconds / event.step * (event.steps - event.step)
        parts = [f"{event.stack.name:<14} step {event.step:>4}/{event.steps}", f"loss {event.loss:.4f}"]
        if event.selection_loss is not None:
            parts.append(f"selection {event.selection_loss:.4f}")
        parts += [f"{name} {value:.3f}" for name, value in event.watched.items()]
        if event.verdict != "go on":
            parts.append(event.diverged or f"bad step: {event.verdict}")
        parts.append(f"eta {clock(eta)}")
        self.say("  ".join(parts))


class EventLines(Console):
    """A console for programs: each event is a JSON object on a line of ``out``, ``event`` being its kind, ``at`` the
    seconds since the start; a number that is none is null. What people read is printed as ever."""

    def __init__(self, out: TextIO):
        super().__init__()
        self._out = out

    def show(self, event: Event) -> None:
        super().show(event)
        line = {"event": type(event).__name__, "at": round(self.seconds, 3), **_finite(event.to_dict())}
        print(json.dumps(line, allow_nan=False), file=self._out, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def words_on_stderr() -> TextIO:
    """Standard output for a program alone: returns it, and lets all that this process and its libraries print go to
    standard error."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out
