"""A campaign's schedule on more and more GPUs: what works, what waits, what lost nodes cost, where more stop helping.

The phases of ``campaign/run.py`` are walked through with a clock, piece by piece: workers start, every round's steps,
its domain's closing; evaluators start, the sweep, the meta-router, answers. How long a piece takes is a plan's
(``cost_of``). Nodes are lost at moments that are drawn.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import UsageError
from bs_cluster.planning.cost import Made
from bs_cluster.planning.fit import with_settings
from bs_cluster.planning.hardware import Assumed
from bs_cluster.planning.plan import Planner, with_domains
from bs_cluster.planning.work import rounds
from bs_cluster.records import Record

GPUS = (8, 16, 32, 64, 128, 256, 512)
DOMAINS = (5, 10, 20, 50)
DRAWS = 200  # campaigns whose mean is told, where nodes are lost
MOST_LOSSES = 10_000  # of one campaign; one that meets more does not get on
HOUR = 3600.0


@dataclass(frozen=True)
class Losses(Record):
    """Spot nodes are lost so often, each. With ``notice`` a checkpoint is written first; without, what was done since
    the last one is done again."""

    per_node_day: float = 0.0
    notice: bool = True


@dataclass(frozen=True)
class Scheduled(Record):
    """Hours by phase on so many GPUs, of which ``workers`` train; ``lost_h`` is what lost nodes cost in all. ``idle``
    is the share of GPU time in which a GPU waits, were all of them held throughout. ``limit`` names what stands in the
    way of more."""

    domains: int
    gpus: int
    workers: int
    training_h: float
    closing_h: float
    sweep_h: float
    router_h: float
    answers_h: float
    starting_h: float
    lost_h: float
    idle: float
    limit: str

    @property
    def hours(self) -> float:
        return sum(getattr(self, name) for name in PARTS)

    @property
    def effective(self) -> float:
        """Of training's hours, the share in which steps and closings were made that count."""
        useful = self.training_h + self.closing_h
        return useful / (useful + self.starting_h / 2 + self.lost_h)


PARTS: Mapping[str, str] = {
    "training_h": "steps",
    "closing_h": "validation, closings",
    "sweep_h": "sweep",
    "router_h": "meta-router",
    "answers_h": "answers",
    "starting_h": "starts",
    "lost_h": "lost nodes",
}


@dataclass(frozen=True)
class Scale(Record):
    """``by_domains`` are the same campaign with so many domains, ``own`` with as many as its config has; of ``own`` on
    the most GPUs, hours that a schedule would save which this one is not: closed domains swept beside training, and
    domains that do not depend on each other trained side by side."""

    campaign: str
    losses: Losses
    own: tuple[Scheduled, ...]
    by_domains: tuple[tuple[Scheduled, ...], ...]
    overlap_saves_h: float
    side_by_side_saves_h: float


class Piece(NamedTuple):
    """A stretch of training, in seconds. One that is ``kept`` goes on from a checkpoint; any other begins anew."""

    seconds: float
    kept: bool


def make_scale(planner: Planner, losses: Losses, gpus: Sequence[int] = GPUS) -> Scale:
    """Every number of GPUs by every number of domains."""
    config, own = planner.config, len(planner.config.domains)
    counts = sorted({own, *(count for count in DOMAINS if count > own)})
    every = {count: _scheduled(planner, with_domains(config, count), gpus, losses) for count in counts}
    most = every[own][-1]
    side = most.gpus // most.workers
    trains = most.training_h + most.closing_h
    return Scale(
        campaign=config.campaign,
        losses=losses,
        own=every[own],
        by_domains=tuple(every[count] for count in counts),
        overlap_saves_h=min(most.sweep_h * (own - 1) / own, trains) if most.gpus > most.workers else 0.0,
        side_by_side_saves_h=trains * (1 - max(longest_chain(config) / own, 1 / side)),
    )


def _scheduled(planner: Planner, config: CampaignConfig, gpus: Sequence[int], losses: Losses) -> tuple[Scheduled, ...]:
    made = planner.made(config)
    return tuple(schedule(planner, spread(config, count), made, count, losses) for count in gpus)


def spread(config: CampaignConfig, gpus: int) -> CampaignConfig:
    """The config for so many GPUs: workers up to a row of the global batch each, evaluators on all."""
    training, sweep = config.training, config.sweep
    per_device = max(1, min(training.per_device_batch, training.global_batch // gpus))
    workers = min(gpus, math.ceil(training.global_batch / per_device))
    evaluators = max(1, int(gpus / (sweep.gpus_per_evaluator or 1.0)))
    changes = {"per_device_batch": per_device, "num_workers": workers, "min_workers": None}
    return with_settings(
        config,
        {f"training.{name}": value for name, value in changes.items()} | {"sweep.evaluators": evaluators},
    )


def schedule(planner: Planner, config: CampaignConfig, made: Made, gpus: int, losses: Losses) -> Scheduled:
    """The campaign on so many GPUs; ``config`` says how many of them train and sweep."""
    cost, training = planner.cost(config, made), config.training
    count = rounds(config)
    pieces = [Piece(cost.training_h * HOUR / count, training.checkpoint_every_s > 0)] * count
    pieces += [Piece(cost.closing_h * HOUR / len(config.domains), False)] * len(config.domains)
    nodes = math.ceil(training.num_workers / max(1, planner.on.node.gpus))
    lost_s = 0.0
    if losses.per_node_day:
        rate = losses.per_node_day * nodes / (24 * HOUR)
        restart_s = planner.on.assumed.start_minutes * 60
        costs = (
            walk(pieces, rate, restart_s, training.checkpoint_every_s, losses.notice, random.Random(draw))
            for draw in range(DRAWS)
        )
        lost_s = statistics.fmean(costs) - sum(piece.seconds for piece in pieces)
    busy = training.num_workers * (cost.training_h + cost.closing_h)
    evaluating = min(gpus, config.sweep.evaluators * (config.sweep.gpus_per_evaluator or 1.0))
    busy += evaluating * (cost.sweep_h + cost.answers_h)
    hours = {
        "training_h": cost.training_h,
        "closing_h": cost.closing_h,
        "sweep_h": cost.sweep_h,
        "router_h": cost.router_h,
        "answers_h": cost.answers_h,
        "starting_h": cost.starting_h,
        "lost_h": lost_s / HOUR,
    }
    return Scheduled(
        domains=len(config.domains),
        gpus=gpus,
        workers=training.num_workers,
        **hours,
        idle=1 - busy / (gpus * sum(hours.values())),
        limit=_limit(hours, config, gpus, planner.on.assumed),
    )


def walk(
    pieces: Sequence[Piece], rate: float, restart_s: float, checkpoint_s: float, notice: bool, draw: random.Random
) -> float:
    """Seconds until all pieces are done, one after another, when workers are stopped at ``rate`` a second and take
    ``restart_s`` to begin again, in which nothing more befalls them. Raises UsageError where that has no end."""
    clock, until, losses = 0.0, draw.expovariate(rate), 0
    for piece in pieces:
        done = 0.0
        while until < piece.seconds - done:
            losses += 1
            if losses > MOST_LOSSES:
                raise UsageError(
                    f"--losses: workers are stopped every {1 / rate:.3g} s in the mean, and {piece.seconds:,.0f} s of "
                    "work that no checkpoint interrupts do not fit between; fewer losses, or with notice"
                )
            done += until
            clock += until + restart_s
            if not notice:
                done = done // checkpoint_s * checkpoint_s if piece.kept else 0.0
            until = draw.expovariate(rate)
        clock += piece.seconds - done
        until -= piece.seconds - done
    return clock


def longest_chain(config: CampaignConfig) -> int:
    """Domains that have to come one after another, each after what its ``after`` names."""
    after = {domain.name: domain.after for domain in config.domains}

    def depth(name: str) -> int:
        return 1 + max(map(depth, after[name]), default=0)

    return max(map(depth, after))


def _limit(hours: Mapping[str, float], config: CampaignConfig, gpus: int, assumed: Assumed) -> str:
    """What takes longest, and what would change that."""
    training = config.training
    largest = max(hours, key=lambda name: hours[name])
    if largest in ("training_h", "closing_h") and training.num_workers < gpus:
        return f"{training.num_workers} train: a global batch of {training.global_batch}"
    if largest == "starting_h":
        return f"starts, {assumed.start_minutes:g} min each"
    return PARTS[largest]
