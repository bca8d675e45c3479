"""The expected loss is the multilinear extension of the outcomes, and what is served its most probable combination."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.router.multilinear import LEVELS, expected_loss, members, served_gates
from bs_cluster.sweep.combinations import all_masks

cases = st.integers(1, 5).flatmap(
    lambda d: st.tuples(
        st.lists(st.floats(-6, 6), min_size=d, max_size=d),
        st.lists(st.floats(0.1, 9), min_size=2**d, max_size=2**d),
    )
)


def brute_force(gates_D, loss_C) -> float:
    """Σ_S Π_{d∈S} p_d Π_{d∉S} (1 − p_d) · loss(S), term by term."""
    total = 0.0
    for fires in itertools.product((0, 1), repeat=len(gates_D)):
        probability = np.prod([p if on else 1 - p for p, on in zip(gates_D, fires, strict=True)])
        total += probability * loss_C[sum(on << d for d, on in enumerate(fires))]
    return total


@given(cases)
def test_expected_loss_is_the_multilinear_extension(case):
    logits_D, loss_C = case
    masks = all_masks(len(logits_D))
    logits_BD, loss_BC = (torch.tensor([values], dtype=torch.float64) for values in case)
    found, _ = expected_loss(logits_BD, loss_BC, members(masks, len(logits_D)).double())
    assert float(found) == pytest.approx(brute_force(1 / (1 + np.exp(-np.array(logits_D))), loss_C), rel=1e-9)


def test_over_some_combinations_it_is_the_expectation_given_one_of_them():
    logits_BD, loss_BC = torch.tensor([[0.3, -1.0]]), torch.tensor([[2.0, 1.0, 3.0]])
    p, q = torch.sigmoid(logits_BD[0]).tolist()
    weights = [(1 - p) * (1 - q), p * (1 - q), p * q]
    wanted = (weights[0] * 2 + weights[1] * 1 + weights[2] * 3) / sum(weights)
    assert float(expected_loss(logits_BD, loss_BC, members([0, 1, 3], 2))[0]) == pytest.approx(wanted, rel=1e-6)


@given(cases)
def test_its_slope_is_the_derivative(case):
    logits_BD, loss_BC = (torch.tensor([values], dtype=torch.float64) for values in case)
    member_CD = members(all_masks(logits_BD.shape[1]), logits_BD.shape[1]).double()
    logits_BD.requires_grad_(True)
    expected_B, slope_BD = expected_loss(logits_BD, loss_BC, member_CD)
    expected_B.sum().backward()
    assert logits_BD.grad is not None
    np.testing.assert_allclose(slope_BD.detach(), logits_BD.grad, atol=1e-9)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6))
def test_where_all_combinations_are_there_a_gate_is_its_own_sigmoid_in_steps(logits_D):
    (gates_D,) = served_gates(np.array([logits_D]), list(all_masks(len(logits_D))))
    np.testing.assert_allclose(gates_D, 1 / (1 + np.exp(-np.array(logits_D))), atol=0.5 / LEVELS + 1e-9)
    assert (gates_D * LEVELS == np.round(gates_D * LEVELS)).all()


def test_gates_weigh_the_combinations_that_there_are():
    """Of none, each alone and all: two gates that are open by themselves share what one combination can have."""
    masks = [0, 1, 2, 4, 7]
    assert served_gates(np.array([[6.0, 6.0, -9.0]]), masks).tolist() == [[0.5, 0.5, 0]]
    assert served_gates(np.array([[9.0, -9.0, -9.0], [-9.0, -9.0, -9.0]]), masks).tolist() == [[1, 0, 0], [0, 0, 0]]
