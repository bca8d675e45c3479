"""An optimizer's start, its rate, what a restore leaves of it, and its state as others can take it over."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bs_cluster.config.conflicts import BUILT_IN_OPTIMIZERS
from bs_cluster.config.schema import TrainingSection
from bs_cluster.errors import ConfigError
from bs_cluster.training.optimizer import BUILT_IN, Rate, build_optimizer, forget, load_state, whole_state

ROOT = Path(__file__).parents[3]


def parameters(**values: float) -> dict[str, torch.nn.Parameter]:
    return {f"q_proj.{name}": torch.nn.Parameter(torch.full((4,), value)) for name, value in values.items()}


def take_steps(optimizer, rate, weights, steps, gradient: float = 1.0, restored_at: int | None = None) -> list[float]:
    """Constant gradients; how far the first weight moved at each step."""
    moved = []
    weights = list(weights.values())
    for step in steps:
        before = float(weights[0].detach()[0])
        for weight in weights:
            weight.grad = torch.full_like(weight, gradient)
        rate.set(step, restored_at)
        optimizer.step()
        moved.append(abs(float(weights[0].detach()[0]) - before))
    return moved


@pytest.mark.parametrize("restored", [False, True])
def test_no_update_after_a_restore_exceeds_the_rate(restored):
    """Moments of zero with the old step count lack their bias correction: the next updates were 2.9 to 5.2 times the
    rate. Adam's own bound with constant gradients is the rate itself."""
    training = TrainingSection(learning_rate=0.01, warmup_steps=2, steps=100, weight_decay=0.0)
    weights = parameters(stack_A=1.0)
    optimizer = build_optimizer(weights, training)
    rate = Rate(optimizer, training)
    take_steps(optimizer, rate, weights, range(1, 21))
    if restored:
        forget(optimizer)
    moved = take_steps(optimizer, rate, weights, range(21, 31), gradient=3.0, restored_at=20 if restored else None)
    assert max(moved) <= 0.01 * (1.001 if restored else 1.3)
    if restored:
        assert moved[0] < 0.6 * moved[-1]  # it warms up again


def test_every_step_has_a_rate_and_the_warm_up_reaches_all_of_it():
    training = TrainingSection(learning_rate=1.0, warmup_steps=4, steps=16)
    rate = Rate(build_optimizer(parameters(stack_A=1.0), training), training)
    rates = [rate.set(step, None) for step in range(1, 17)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[3:]))
    assert 0 < rates[-1] < 0.05


def test_b_may_have_a_rate_of_its_own_all_along():
    weights = parameters(stack_A=1.0, stack_B=0.0)
    training = TrainingSection(learning_rate=0.1, b_lr_ratio=4.0)
    optimizer = build_optimizer(weights, training)
    rate = Rate(optimizer, training)
    for step in (1, 20, 300):
        assert rate.set(step, None) > 0
        rates = {id(group["params"][0]): group["lr"] for group in optimizer.param_groups}
        assert rates[id(weights["q_proj.stack_B"])] == pytest.approx(4 * rates[id(weights["q_proj.stack_A"])])


def test_a_config_knows_those_that_are_built_in():
    assert tuple(BUILT_IN) == BUILT_IN_OPTIMIZERS


def test_one_that_a_node_does_not_have_is_told():
    with pytest.raises(ConfigError, match="no package on this machine adds lion; install it on every node"):
        build_optimizer(parameters(stack_A=1.0), TrainingSection(optimizer="lion"))


def test_one_more_optimizer_is_an_entry_point(tmp_path):
    """Named in the config, built, stepped, and forgotten: by a package that this one has never heard of."""
    (tmp_path / "outside.py").write_text(
        "import torch\n\n\ndef build(groups, training):\n    return torch.optim.SGD(groups, momentum=0.9)\n"
    )
    metadata = tmp_path / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[bs_cluster.optimizers]\nmomentum = outside:build\n")
    code = """
import torch
from bs_cluster.config import parse_config
from bs_cluster.training.optimizer import build_optimizer, forget

text = "campaign: a\\ndomains: [{name: chat, sources: [{kind: embedded, name: chat}]}]"
training = parse_config(text, ["training.optimizer=momentum"]).training
weight = torch.nn.Parameter(torch.ones(4))
optimizer = build_optimizer({"q_proj.stack_A": weight}, training)
weight.grad = torch.ones(4)
optimizer.step()
forget(optimizer)
print(type(optimizer).__name__, [float(s["momentum_buffer"].abs().max()) for s in optimizer.state.values()])
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "SGD [0.0]"


@pytest.mark.parametrize("kind", ["adamw", "sgd", "rmsprop"])
def test_a_state_that_was_told_goes_on_as_if_it_had_not_been(kind):
    """Whatever an optimizer keeps: two parameters in one flat slice of it, as under ZeRO."""
    sizes = {"a": torch.Size([2, 3]), "b": torch.Size([4])}

    def build():
        flat = torch.nn.Parameter(torch.arange(10.0))
        makers = {
            "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1),
            "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
            "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.1, momentum=0.5, centered=True),
        }
        return flat, makers[kind]([{"params": [flat]}])

    def steps(flat, optimizer, count):
        for number in range(count):
            flat.grad = torch.linspace(-1, 1, 10) * (number + 1)
            optimizer.step()

    (whole, whole_optimizer), (first, first_optimizer), (second, second_optimizer) = build(), build(), build()
    steps(whole, whole_optimizer, 3)
    steps(first, first_optimizer, 3)
    state = whole_state(first_optimizer, first, sizes, torch.Tensor.detach, keep=True)
    assert all(state[name].shape == sizes[name[0]] or state[name].ndim == 0 for name in state)
    load_state(second_optimizer, [(second, sizes)], state, lambda told, _: told)
    second.data.copy_(first.data)
    steps(whole, whole_optimizer, 2)
    steps(second, second_optimizer, 2)
    assert torch.equal(whole, second)
