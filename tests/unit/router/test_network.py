"""The paper's network: padding is nothing to it, it learns from few rows, and training leaves no trace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bs_cluster.config.schema import NetworkSection
from bs_cluster.errors import DataError
from bs_cluster.router.net import MetaRouter
from bs_cluster.router.network_fit import route, router_loss, train_router
from bs_cluster.router.states import CachedStates


def clustered_states(rows: int, seed: int, width: int = 640):
    """States as a base gives them: a weak shift per domain under strong per-prompt topics, features of very unequal
    scale, and a first token hundreds of times larger than the rest. Returns (states, domain of each row).
    """
    world = np.random.default_rng(0)
    centre_DH, topic_KH = world.normal(size=(5, width)), world.normal(size=(200, width))
    scale_H = np.exp(world.normal(size=width))
    draw = np.random.default_rng(seed)
    states, owner_B = [], np.arange(rows) % 5
    for owner in owner_B:
        noise_TH = draw.normal(size=(draw.integers(10, 41), width))
        states_TH = noise_TH + 0.4 * centre_DH[owner] + 0.5 * topic_KH[draw.integers(200, size=2)].sum(axis=0)
        states_TH[0, :5] += 3000
        states.append((states_TH * scale_H).astype(np.float32))
    return states, owner_B


SMALL = NetworkSection(hidden=64, epochs=2)


@pytest.fixture(scope="module")
def small():
    """A small trained router with the states it was trained on."""
    states, owner_B = clustered_states(20, seed=1, width=32)
    return train_router(states, np.eye(5)[owner_B], SMALL, seed=0), states


def test_sixty_rows_teach_a_full_router():
    states, owner_B = clustered_states(60, seed=1)
    # As the paper's targets look: own domain on, chat helps a little everywhere.
    targets_BD = np.maximum(np.eye(5)[owner_B], 0.3 * np.eye(5)[[0]])
    trained = train_router(states, targets_BD, NetworkSection(), seed=0)
    held_out, held_owner_B = clustered_states(100, seed=2)
    assert (route(trained.router, held_out).argmax(dim=1).numpy() == held_owner_B).mean() > 0.9


def test_the_best_epoch_is_kept(small):
    trained, _ = small
    best = min(trained.history, key=lambda record: record.bce)
    assert best.bce < trained.history[0].bce
    assert not trained.router.training


def test_training_is_deterministic_and_leaves_the_global_generator_alone(small):
    trained, states = small
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    again = train_router(states, np.eye(5)[np.arange(20) % 5], SMALL, seed=0)
    assert torch.equal(torch.rand(1), expected)
    assert again.history == trained.history
    assert torch.equal(route(again.router, states), route(trained.router, states))
    other = train_router(states, np.eye(5)[np.arange(20) % 5], SMALL, seed=1)
    assert not torch.equal(route(other.router, states), route(trained.router, states))


@settings(max_examples=20)
@given(st.integers(1, 30), st.sampled_from([0.0, 1e30, float("nan"), float("inf")]))
def test_padding_changes_nothing(small, extra, filler):
    trained, states = small
    states_BTH, mask_BT = CachedStates(states).batch([0, 1, 2])
    padded_BTH = torch.nn.functional.pad(states_BTH, (0, 0, 0, extra), value=filler)
    padded_mask_BT = torch.nn.functional.pad(mask_BT, (0, extra), value=False)
    with torch.no_grad():
        expected, actual = trained.router(states_BTH, mask_BT), trained.router(padded_BTH, padded_mask_BT)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_is_routed_alike_alone_and_among_others(small):
    trained, states = small
    alone = torch.cat([route(trained.router, [states_TH]) for states_TH in states])
    torch.testing.assert_close(route(trained.router, states), alone, rtol=1e-5, atol=1e-5)


def test_the_margin_penalises_doubt():
    target_BD = torch.tensor([[1.0, 0.0]])
    sure, unsure = torch.tensor([[3.0, -3.0]]), torch.tensor([[0.1, -0.1]])
    assert router_loss(sure, target_BD, 0.05) == router_loss(sure, target_BD, 0.0)
    assert router_loss(unsure, target_BD, 0.05) > router_loss(unsure, target_BD, 0.0)


def test_temperature_stays_in_its_range():
    router = MetaRouter(8, 2, hidden=8)
    for value, bound in ((100.0, 4.0), (-100.0, 0.25)):
        torch.nn.init.constant_(router.log_temperature, value)
        assert router.temperature.item() == pytest.approx(bound)


def test_broken_states_and_targets_are_refused():
    good = np.zeros((3, 4), dtype=np.float32)
    with pytest.raises(DataError, match="prompt 1 are not finite"):
        CachedStates([good, np.full((2, 4), np.inf, dtype=np.float32)])
    with pytest.raises(DataError, match=r"prompt 1 are \(0, 4\)"):
        CachedStates([good, good[:0]])
    with pytest.raises(DataError, match="2 rows"):
        train_router([good, good], np.zeros((3, 5)), SMALL, seed=0)
