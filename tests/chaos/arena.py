"""Where trials of one kind are held: its undisturbed control, and a fresh folder for each trial."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bs_cluster.store import Store
from chaos import process
from chaos.record import Result, here
from chaos.remains import Remains, compare, remains
from chaos.trials import Trial

RERUNS = 3  # a command that is told to be run again may be told so more than once


class Disturbed(Protocol):
    """A campaign in a folder of its own: calling it does what its command does, and returns the exit code."""

    kind: str
    folder: Path
    ranks: int
    patience_s: float
    store: Store
    database: Path
    steps: Path | None

    def begin(self) -> None: ...
    def __call__(self) -> int: ...


class Arena:
    """``make`` gives the campaign of a folder; ``template`` is what each begins with. The first time (``anew``) two
    controls are held against each other: what differs between them would say nothing about a trial."""

    def __init__(self, make: Callable[[Path, Path], Disturbed], template: Path, folder: Path, anew: bool):
        self.make, self.template, self.folder = make, template, folder
        self.control, self.passes = self._undisturbed("control")
        if anew:
            second, _ = self._undisturbed("second-control")
            found = compare(second, self.control)
            assert found.none, f"two undisturbed campaigns differ: {found}"

    def _fresh(self) -> Disturbed:
        """Always in the same folder: its name is in a campaign's identity and in what MLflow holds."""
        shutil.rmtree(self.folder / "campaign", ignore_errors=True)
        campaign = self.make(self.folder / "campaign", self.template)
        campaign.begin()
        return campaign

    def _undisturbed(self, name: str) -> tuple[Remains, dict[str, int]]:
        campaign, folder = self._fresh(), self.folder / name
        # Armed with what never comes, it counts what it passes.
        end = process.run(campaign, folder / "log", "store.ref=late@999999", folder / "marks", 600, campaign.ranks)
        assert end.how == "done", end.log
        passes: dict[str, int] = {}
        for path in sorted((folder / "marks").glob("passed-*.json")):
            for place, count in json.loads(path.read_text()).items():
                passes[place] = max(count, passes.get(place, 0))
        return remains(campaign.store, campaign.database), passes

    def hold(self, trial: Trial) -> Result:
        """The trial, from a fresh start to the comparison. Its folder is kept where something was wrong."""
        started, folder = time.monotonic(), self.folder / trial.name.replace(": ", "-")
        campaign = self._fresh()
        asked = f"{trial.place}={trial.fault}@{trial.at}"

        def command(log: str) -> process.End:
            return process.run(campaign, folder / log, asked, folder / "marks", campaign.patience_s, campaign.ranks)

        end, again = command("log"), None
        began_again = time.time()
        for number in range(RERUNS):
            again = command(f"again-{number}.log")
            if again.how != "told":
                break
        assert again is not None
        wrong = {}
        if again.how == "done":
            wrong = {
                kind: told
                for kind, told in vars(compare(remains(campaign.store, campaign.database), self.control)).items()
                if told
            }
        else:
            wrong["stuck"] = [f"the same command ended {again.how}: {again.log[-600:]}"]
        if left := [path.name for path in (folder / "scratch").glob("bs-stack-*")]:
            wrong.setdefault("torn", []).append(f"left over among temporary files: {', '.join(left)}")
        if end.how == "stuck":
            wrong.setdefault("stuck", []).append(f"no end within {campaign.patience_s:.0f} s")
        if end.how == "traceback" or (
            campaign.ranks == 1 and "Traceback (most recent call last)" in end.log + again.log
        ):
            wrong["raw"] = [(end.log + again.log)[-1500:]]
        steps = told_of_steps(campaign.steps, began_again)
        if wrong:
            campaign.folder.rename(folder / "campaign")
        else:
            shutil.rmtree(folder)
        return Result(
            trial,
            struck=end.struck,
            ended=end.how,
            again=again.how,
            seconds=round(time.monotonic() - started, 1),
            **here(),
            wrong=wrong,
            **steps,
        )


def told_of_steps(told: Path | None, began_again: float) -> dict[str, Any]:
    """Seconds from the second command to its first step, where it made any, and steps that were made twice."""
    if told is None or not told.exists():
        return {}
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    after = [at - began_again for _, _, at in lines if at > began_again]
    twice = len(lines) - len({(stack, step) for stack, step, _ in lines})
    return {"first_step_s": round(min(after), 1) if after else None, "steps_lost": twice}
