"""What a person reads while a campaign runs: one line an event, at most one a second of training steps."""

from __future__ import annotations

import sys
import time
from typing import Any


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
        self.last_step_line = -1e9

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def say(self, text: str = "") -> None:
        print(f"[{clock(self.seconds)}] {text}" if text else "", flush=True)

    def show(self, event: dict[str, Any]) -> None:
        """One event of the coordinator, if it is worth a line now."""
        kind = event.get("kind")
        if kind == "phase":
            self.say(event["text"])
        elif kind == "round":
            self.say(f"{event['stack']:<14} training begins")
        elif kind == "step":
            self._step(event)
        elif kind == "outcome":
            verdict = "committed" if event["committed"] else "rejected "
            self.say(
                f"{event['stack']:<14} {verdict}  val {event['val_before']:.4f} -> {event['val_after']:.4f}"
                f"  ({clock(event['seconds'])}){'' if event['committed'] else '  ' + event['reason']}"
            )
        elif kind == "closed":
            self.say(
                f"{event['domain']:<14} closed     alone {event['isolated']:.4f}, base {event['base']:.4f}"
                " nats per completion token"
            )

    def _step(self, event: dict[str, Any]) -> None:
        step, steps = int(event["step"]), int(event["steps"])
        important = "val_loss" in event or event["verdict"] != "go on" or step == 1
        if not important and time.monotonic() - self.last_step_line < self.every_s:
            return
        self.last_step_line = time.monotonic()
        eta = event["seconds"] / step * (steps - step)
        parts = [f"{event['stack']:<14} step {step:>4}/{steps}", f"loss {event['loss']:.4f}"]
        if "val_loss" in event:
            parts.append(f"val {event['val_loss']:.4f}")
        if event["verdict"] != "go on":
            parts.append(f"bad step: {event['verdict']}")
        parts.append(f"eta {clock(eta)}")
        self.say("  ".join(parts))


def fail(message: str, code: int) -> int:
    """Prints an error as a person wants it and returns the exit code."""
    print(message, file=sys.stderr, flush=True)
    return code
