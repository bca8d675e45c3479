"""When to trust a training step. Pure: the loop feeds numbers in and does what comes back.

A loss far above the usual ones may be a spike or a hard batch, and no statistic of other batches tells which: rows of
another kind have losses of their own. So the guard only *suspects*, by location and spread of the last good steps;
the loop then asks what the parent, the learning stack left out, loses on that batch, and the guard *judges* by that.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

Verdict = Literal["go on", "restore", "stop"]

WINDOW = 20  # good steps that say what is usual
ENOUGH = 3  # of them, before anything can be suspected
MAD_TO_DEVIATION = 1.4826  # median absolute deviation of a normal distribution, in standard deviations


@dataclass
class SpikeGuard:
    """``deviations`` robust standard deviations above the median, and at least ``margin`` nats, make a loss suspect; so
    does a gradient norm ``norm_factor`` times the usual one. A suspect step is bad if it lost more than the parent on
    the same batch, by ``margin``. A number that is not finite is bad at once. ``limit`` bad ones in a row end the
    round."""

    deviations: float
    margin: float
    norm_factor: float
    limit: int
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    in_a_row: int = 0
    restores: int = 0

    def suspects(self, loss: float, grad_norm: float) -> bool:
        """Whether the parent must be asked before this step can be judged."""
        if len(self.losses) < ENOUGH or not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return False
        usual = median(self.losses)
        spread = MAD_TO_DEVIATION * median(abs(value - usual) for value in self.losses)
        return loss > usual + max(self.margin, self.deviations * spread) or (
            grad_norm > self.norm_factor * median(self.norms)
        )

    def judge(self, loss: float, grad_norm: float, parent_loss: float | None = None) -> Verdict:
        """The verdict on a step; ``parent_loss`` is the parent's on its batch, where ``suspects`` asked for it."""
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite and (parent_loss is None or loss <= parent_loss + self.margin):
            self.losses.append(loss)
            self.norms.append(grad_norm)
            self.in_a_row = 0
            return "go on"
        self.in_a_row += 1
        self.restores += 1
        return "stop" if self.in_a_row >= self.limit else "restore"

    def state(self) -> dict[str, Any]:
        """What a resumed round needs, JSON-ready."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "in_a_row": self.in_a_row,
            "restores": self.restores,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.losses = deque(state["losses"], maxlen=WINDOW)
        self.norms = deque(state["norms"], maxlen=WINDOW)
        self.in_a_row, self.restores = state["in_a_row"], state["restores"]
