"""What an evaluation found: plain records, beside the report and in MLflow."""

from __future__ import annotations

from dataclasses import dataclass

from bs_cluster.estimates import Estimate
from bs_cluster.records import Record

BASE, UNGATED, ROUTED = "base", "ungated", "routed"


@dataclass(frozen=True)
class Score(Record):
    """A metric of a task, or of a group's tasks together, in one mode. ``rows`` counts those that it is over, ``error``
    is its standard error and ``less_base`` the paired difference to the base on the same rows; None where there is
    none: of one row alone, of the base, of a metric that is no mean over rows."""

    task: str
    metric: str
    mode: str
    rows: int
    value: float
    error: float | None
    less_base: Estimate | None


@dataclass(frozen=True)
class Evaluation(Record):
    """A bundle on tasks. Of each task, ``rows`` counts those that were asked, ``shots`` the solved examples before its
    questions, ``left_out`` holds the places of rows that the campaign was trained on and ``gates`` the mean gate weight
    of each domain over its routed prompts. ``template`` is what questions stood in, if in one;
    ``seconds`` is what each mode took."""

    campaign: str
    bundle: int
    manifest: str
    lm_eval: str
    limit: int | None
    template: str | None
    rows: dict[str, int]
    shots: dict[str, int]
    scores: tuple[Score, ...]
    left_out: dict[str, tuple[int, ...]]
    gates: dict[str, dict[str, float]]
    seconds: dict[str, float]

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self.seconds)

    @property
    def metrics(self) -> dict[str, float]:
        """Flat, for MLflow: values, and differences to the base."""
        found: dict[str, float] = {}
        for score in self.scores:
            name = f"evaluation/{score.task}/{score.metric}/{score.mode}"
            found[name] = score.value
            if score.less_base is not None:
                found[f"{name} less base"] = score.less_base.mean
        return found
