"""What a trial showed, a line of JSON each: what a campaign of harm goes on from, and what its page is made of."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.trials import Trial


@dataclass(frozen=True)
class Result:
    """``ended`` is how the disturbed process did, ``again`` how the same command did afterwards (``process.End.how``).
    ``wrong`` tells, by kind (lost, doubled, torn, differs, raw, stuck), what was not as it must be. ``seconds`` are
    those of the whole trial; of a trial with training steps, ``first_step_s`` is the time from the second command to
    its first step, and ``steps_lost`` the steps that were made twice. ``here`` tells ``date`` and ``machine``."""

    trial: Trial
    struck: bool
    ended: str
    again: str
    seconds: float
    date: str
    machine: str
    wrong: Mapping[str, list[str]] = field(default_factory=dict)
    first_step_s: float | None = None
    steps_lost: int | None = None


def here() -> dict[str, str]:
    """Today and this machine, as far as times depend on it."""
    return {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}


class Results:
    """The file that holds them, and beside them how often an undisturbed process passed each failpoint, by kind."""

    def __init__(self, path: Path):
        self.path = path
        self.passes: dict[str, dict[str, int]] = {}
        self.of: dict[Trial, Result] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            held = json.loads(line)
            if "passes" in held:
                self.passes[held["kind"]] = held["passes"]
            else:
                result = Result(**{**held, "trial": Trial(**held["trial"])})
                self.of[result.trial] = result

    def passed(self, kind: str, passes: Mapping[str, int]) -> None:
        """The trials of a kind follow from its first control's passes, so that another command goes on with them."""
        if kind not in self.passes:
            self.passes[kind] = dict(passes)
            self._add({"kind": kind, "passes": self.passes[kind]})

    def add(self, result: Result) -> None:
        self.of[result.trial] = result
        self._add(dataclasses.asdict(result))

    def _add(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
