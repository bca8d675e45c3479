"""A schedule is a plan's pieces one after another: nothing lost, nothing gained, and lost nodes cost what they must."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from bs_cluster.cli.main import main
from bs_cluster.config import load_config
from bs_cluster.planning.hardware import hardware
from bs_cluster.planning.plan import Planner, with_domains
from bs_cluster.planning.schedule import GPUS, Losses, Piece, longest_chain, make_scale, spread, walk

GEMMA = str(Path(__file__).resolve().parents[3] / "jobs/configs/gemma3_12b.yaml")
EMBEDDED = str(Path(GEMMA).with_name("embedded.yaml"))


class Drawn(random.Random):
    """Losses after just so many seconds each, and then none."""

    def __init__(self, *after: float):
        super().__init__(0)
        self.after = list(after)

    def expovariate(self, lambd: float = 1.0) -> float:
        return self.after.pop(0) if self.after else float("inf")


@pytest.fixture(scope="module")
def planner():
    return Planner(load_config(GEMMA, []), hardware("8xH100"))


@pytest.mark.parametrize(
    ("pieces", "lost", "notice", "seconds"),
    [
        ([Piece(100, True), Piece(50, False)], [], False, 150),
        ([Piece(100, True)], [45.0], True, 100 + 7),  # 45 are kept, and workers start anew
        ([Piece(100, True)], [45.0], False, 100 + 5 + 7),  # since the last checkpoint, of 40
        ([Piece(100, False)], [45.0], False, 100 + 45 + 7),
        ([Piece(100, True), Piece(50, False)], [130.0], False, 150 + 30 + 7),
        ([Piece(100, True)], [45.0, 12.0], False, 100 + 5 + 7 + 2 + 7),
    ],
)
def test_a_loss_costs_a_start_and_what_no_checkpoint_had(pieces, lost, notice, seconds):
    assert walk(pieces, 1.0, 7.0, 10.0, notice, Drawn(*lost)) == pytest.approx(seconds)


def test_the_mean_over_draws_is_the_rate_s():
    """Each loss costs a start, and there are as many as the rate has in the time that is worked."""
    rate, seconds, restart = 1e-4, 1000.0, 50.0
    took = [walk([Piece(seconds, True)], rate, restart, 1.0, True, random.Random(n)) for n in range(20_000)]
    assert statistics.fmean(took) - seconds == pytest.approx(rate * seconds * restart, rel=0.1)


@pytest.mark.parametrize("gpus", GPUS)
def test_workers_are_as_many_as_have_a_row_of_the_global_batch(planner, gpus):
    training = spread(planner.config, gpus).training
    assert training.num_workers == min(gpus, 16)
    assert training.num_workers * training.per_device_batch == 16


def test_an_evaluator_that_wants_more_gpus_than_there_are_is_one(planner):
    wide = planner.config.model_copy(
        update={"sweep": planner.config.sweep.model_copy(update={"gpus_per_evaluator": 16.0})}
    )
    assert spread(wide, 8).sweep.evaluators == 1


def test_few_workers_have_micro_batches_as_large_as_the_config_s(planner):
    few = spread(planner.config, 2).training
    assert (few.num_workers, few.per_device_batch) == (2, planner.config.training.per_device_batch)


def test_without_losses_it_is_the_plan_s_hours(planner):
    scale = make_scale(planner, Losses(), (8,))
    config = spread(planner.config, 8)
    (one,) = scale.own
    assert one.hours == pytest.approx(planner.cost(config, planner.made(config)).hours)
    assert one.lost_h == 0


def test_more_gpus_take_no_longer_and_wait_more(planner):
    scale = make_scale(planner, Losses())
    hours, idle = [one.hours for one in scale.own], [one.idle for one in scale.own]
    assert hours == sorted(hours, reverse=True)
    assert idle[1:] == sorted(idle[1:])
    assert [every[0].domains for every in scale.by_domains] == [5, 10, 20, 50]
    for fewer, more in zip(scale.by_domains, scale.by_domains[1:], strict=False):
        assert all(one.hours < other.hours for one, other in zip(fewer, more, strict=True))


def test_losses_cost_more_without_notice(planner):
    often = [make_scale(planner, Losses(50.0, notice), (16,)).own[0] for notice in (True, False)]
    assert 0 < often[0].lost_h < often[1].lost_h
    assert often[1].effective < often[0].effective < 1


def test_where_the_global_batch_ends_it_is_named(planner):
    scale = make_scale(planner, Losses(), (8, 64))
    assert [one.limit for one in scale.own] == ["steps", "16 train: a global batch of 16"]


def test_chains_are_as_long_as_after_makes_them(planner):
    *others, last = planner.config.domains
    chained = [one.model_copy(update={"after": ()}) for one in others[:-1]]
    chained += [others[-1].model_copy(update={"after": (others[0].name,)})]
    chained += [last.model_copy(update={"after": (others[-1].name,)})]
    config = planner.config.model_copy(update={"domains": tuple(chained)})
    assert longest_chain(config) == longest_chain(with_domains(config, 9)) == 3


def test_the_command_shows_it_and_refuses_what_it_cannot_count(capsys):
    assert main(("plan", "--config", GEMMA, "--scale", "--losses", "1", "--on", "8xH100", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["gpus"] for one in told["own"]] == list(GPUS)
    assert told["losses"] == {"per_node_day": 1.0, "notice": True}
    for words, refused in (
        (("--config", EMBEDDED, "--scale"), "it counts GPUs"),
        (("--config", GEMMA, "--losses", "1"), "with --scale"),
        (("--config", GEMMA, "--scale", "--no-notice"), "of which losses"),
        (("--config", GEMMA, "--scale", "--losses", "1e6", "--no-notice"), "do not fit between"),
        (("--config", GEMMA, "--completion-tokens", "9999"), "here 512"),
        (("--config", GEMMA, "--row-tokens", "40", "--completion-tokens", "40"), "fewer than --row-tokens"),
    ):
        assert main(("plan", *words)) == 2
        assert refused in capsys.readouterr().err
