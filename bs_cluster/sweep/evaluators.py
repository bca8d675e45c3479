"""Evaluator actors, with the resources that ``sweep`` names: a campaign's second half has them, and rounds of rewards
whose answers they draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from bs_cluster.config.identity import curriculum
from bs_cluster.config.schema import CampaignConfig


class EvaluatorActor:
    """``inference.evaluator.Evaluator`` in a process of its own. Light to import: a driver starts these, and has itself
    no use for what takes seconds to import and loads a base."""

    def __init__(self, config: dict[str, Any], domains: Sequence[str]):
        from bs_cluster.inference.evaluator import Evaluator  # noqa: PLC0415

        self._evaluator = Evaluator(config, domains)

    def score(self, *arguments: Any) -> Any:
        return self._evaluator.score(*arguments)

    def encode(self, *arguments: Any) -> Any:
        return self._evaluator.encode(*arguments)

    def probe(self, *arguments: Any) -> Any:
        return self._evaluator.probe(*arguments)

    def answer(self, *arguments: Any) -> Any:
        return self._evaluator.answer(*arguments)

    def draw(self, *arguments: Any) -> Any:
        return self._evaluator.draw(*arguments)

    def pid(self) -> int:
        return self._evaluator.pid()


def start_evaluators(config: CampaignConfig) -> list[Any]:
    """Evaluator actors, loading in parallel. Ray restarts one that dies; its work is given out again."""
    sweep = config.sweep
    actor = ray.remote(EvaluatorActor).options(
        num_cpus=sweep.cpus_per_evaluator,
        num_gpus=sweep.gpus_per_evaluator,
        max_restarts=sweep.max_retries,
        scheduling_strategy="DEFAULT",  # where a training worker starts them: not in that one's place
    )
    domains = curriculum(config)
    return [actor.remote(config.model_dump(mode="json"), domains) for _ in range(sweep.evaluators)]


def stop_evaluators(evaluators: Sequence[Any]) -> None:
    for evaluator in evaluators:
        try:
            ray.kill(evaluator)
        except RayError:  # it is gone already
            continue
