"""An optimizer's start, its rate, and what a restore leaves of it."""

from __future__ import annotations

import itertools

import pytest
import torch

from bs_cluster.config.schema import TrainingSection
from bs_cluster.errors import ConfigError
from bs_cluster.training.optimizer import OPTIMIZERS, Schedule, build_optimizer, forget


class Sites:
    """What ``build_optimizer`` looks at of a model: which parameters are a B."""

    def __init__(self, *b: torch.nn.Parameter):
        self.sites = [type("Site", (), {"stack_B": {"chat_r1": parameter}}) for parameter in b]


def parameter(value: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full((4,), value))


def take_steps(optimizer, schedule, weights, steps: int, gradient: float = 1.0) -> list[float]:
    """Constant gradients; how far the first weight moved at each step."""
    moved = []
    for _ in range(steps):
        before = float(weights[0].detach()[0])
        for weight in weights:
            weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        schedule.step()
        moved.append(abs(float(weights[0].detach()[0]) - before))
    return moved


@pytest.mark.parametrize("restored", [False, True])
def test_no_update_after_a_restore_exceeds_the_rate(restored):
    """Moments of zero with the old step count lack their bias correction: the next updates were 2.9 to 5.2 times the
    rate. Adam's own bound with constant gradients is the rate itself."""
    training = TrainingSection(learning_rate=0.01, warmup_steps=2, steps=100, weight_decay=0.0)
    weights = [parameter(1.0)]
    optimizer = build_optimizer(Sites(), weights, training)
    schedule = Schedule(optimizer, training)
    take_steps(optimizer, schedule, weights, 20)
    if restored:
        forget(optimizer)
        schedule.warm_up_again()
    moved = take_steps(optimizer, schedule, weights, 10, gradient=3.0)
    assert max(moved) <= 0.01 * (1.001 if restored else 1.3)
    if restored:
        assert moved[0] < 0.6 * moved[-1]  # it warms up again


def test_every_step_has_a_rate_and_the_warm_up_reaches_all_of_it():
    training = TrainingSection(learning_rate=1.0, warmup_steps=4, steps=16)
    weights = [parameter(1.0)]
    optimizer = build_optimizer(Sites(), weights, training)
    schedule = Schedule(optimizer, training)
    rates = []
    for _ in range(16):
        rates.append(schedule.get_last_lr()[0])
        take_steps(optimizer, schedule, weights, 1)
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[3:]))
    assert 0 < rates[-1] < 0.05


def test_b_may_have_a_rate_of_its_own():
    a, b = parameter(1.0), parameter(0.0)
    optimizer = build_optimizer(Sites(b), [a, b], TrainingSection(learning_rate=0.1, b_lr_ratio=4.0))
    rates = {id(group["params"][0]): group["lr"] for group in optimizer.param_groups}
    assert rates[id(b)] == pytest.approx(4 * rates[id(a)])


def test_an_optimizer_of_one_s_own_is_a_line_and_forgets_what_it_keeps(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "momentum", lambda groups, training: torch.optim.SGD(groups, momentum=0.9))
    training = TrainingSection(optimizer="momentum", learning_rate=0.1)
    weights = [parameter(1.0)]
    optimizer = build_optimizer(Sites(), weights, training)
    take_steps(optimizer, Schedule(optimizer, training), weights, 3)
    forget(optimizer)
    assert not any(buffer.any() for state in optimizer.state.values() for buffer in state.values())


def test_an_optimizer_that_nobody_registered_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'adamv'.*there are adamw"):
        build_optimizer(Sites(), [parameter(1.0)], TrainingSection(optimizer="adamv"))
