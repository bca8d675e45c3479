"""What a person reads while a campaign runs: one line an event, at most one a second of training steps."""

from __future__ import annotations

import sys
import time

from bs_cluster.events import DomainClosed, Event, Measuring, Phase, RoomScarce, RoundEnded, RoundStarted, StepDone


def clock(seconds: float) -> str:
    """``03:07``, or ``2:15:00`` from an hour on."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes:02d}:{whole % 60:02d}"


class Console:
    """Lines begin with the time since the campaign's start. Job logs are line by line, so nothing is overwritten."""

    def __init__(self, every_s: float = 5.0):
        self.start = time.monotonic()
        self.every_s = every_s
        self.last_line = -1e9

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def say(self, text: str = "") -> None:
        print(f"[{clock(self.seconds)}] {text}" if text else "", flush=True)

    def show(self, event: Event) -> None:
        """One event of the workers, if it is worth a line now."""
        match event:
            case Phase():
                self.say(event.text)
            case RoundStarted():
                self.say(f"{event.stack.name:<14} training begins")
            case StepDone():
                self._step(event)
            case RoundEnded(outcome):
                verdict = "committed" if outcome.committed else "rejected "
                self.say(
                    f"{outcome.stack.name:<14} {verdict}  val {outcome.val_before:.4f} -> {outcome.val_after:.4f}"
                    f"  ({clock(outcome.seconds)}){'' if outcome.committed else '  ' + outcome.reason}"
                )
            case RoomScarce(width, free):
                self.say(
                    f"room is scarce: earlier domains leave {free:.0%} of the directions of a site of width {width}; "
                    "a smaller null_space.max_share or max_rank makes a campaign's claims smaller"
                )
            case DomainClosed():
                self.say(
                    f"{event.domain:<14} closed     alone {event.isolated:.4f}, base {event.base:.4f}"
                    " nats per completion token"
                )
            case Measuring():
                if self._due():
                    self.say(f"{event.domain:<14} measuring directions  {event.batch}/{event.batches} batches")

    def _due(self) -> bool:
        """Whether a line of progress is due; if so it counts as said."""
        if time.monotonic() - self.last_line < self.every_s:
            return False
        self.last_line = time.monotonic()
        return True

    def _step(self, event: StepDone) -> None:
        important = event.val_loss is not None or event.verdict != "go on" or event.step == 1
        if not self._due() and not important:
            return
        self.last_line = time.monotonic()
        eta = event.seconds / event.step * (event.steps - event.step)
        parts = [f"{event.stack.name:<14} step {event.step:>4}/{event.steps}", f"loss {event.loss:.4f}"]
        if event.val_loss is not None:
            parts.append(f"val {event.val_loss:.4f}")
        if event.verdict != "go on":
            parts.append(f"bad step: {event.verdict}")
        parts.append(f"eta {clock(eta)}")
        self.say("  ".join(parts))


def fail(message: str, code: int) -> int:
    """Prints an error as a person wants it and returns the exit code."""
    print(message, file=sys.stderr, flush=True)
    return code
