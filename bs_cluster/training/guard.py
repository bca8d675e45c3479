"""When to trust a training step. Pure: the trainer feeds numbers in and does what comes back."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Verdict = Literal["go on", "restore", "stop"]


@dataclass
class SpikeGuard:
    """Calls a step bad if its loss is not finite or exceeds ``factor`` times the median of the last 20 good ones.

    A bad step restores the best snapshot; ``limit`` bad steps in a row end the round.
    """

    factor: float
    limit: int
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    in_a_row: int = 0
    restores: int = 0

    def judge(self, loss: float) -> Verdict:
        bad = not math.isfinite(loss) or (len(self.recent) >= 3 and loss > self.factor * median(self.recent))
        if not bad:
            self.recent.append(loss)
            self.in_a_row = 0
            return "go on"
        self.in_a_row += 1
        self.restores += 1
        return "stop" if self.in_a_row >= self.limit else "restore"


def improves(before: float, after: float, min_improvement: float) -> bool:
    """The commit rule: finite, and lower than the parent by at least ``min_improvement`` nats per token."""
    return math.isfinite(after) and before - after >= min_improvement and after < before
