"""From logits to gate weights: sigmoid, floors, and exact zeros below the threshold."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.router.gates import serve_weights

DOMAINS = ("chat", "code", "math")


def logit(p: float) -> float:
    return float(torch.logit(torch.tensor(p)))


def test_floor_then_threshold():
    logits_BD = torch.tensor([[logit(0.01), logit(0.11), logit(0.9)], [logit(0.5), logit(0.13), -30.0]])
    weights_BD = serve_weights(logits_BD, DOMAINS, {"chat": 0.20}, threshold=0.12)
    torch.testing.assert_close(weights_BD, torch.tensor([[0.20, 0.0, 0.9], [0.5, 0.13, 0.0]]))
    assert weights_BD[0, 1] == 0
    assert weights_BD[1, 2] == 0


def test_floors_of_absent_domains_and_below_the_threshold_do_nothing():
    logits_BD = torch.full((1, 3), -9.0)
    assert serve_weights(logits_BD, DOMAINS, {"poetry": 0.9, "code": 0.05}, threshold=0.12).tolist() == [[0, 0, 0]]


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=3), st.floats(0, 1), st.floats(0, 1))
def test_weights_are_zero_or_between_threshold_and_one(logits, floor, threshold):
    threshold, floor = float(torch.tensor(threshold)), float(torch.tensor(floor))
    for weight in serve_weights(torch.tensor([logits]), DOMAINS, {"math": floor}, threshold)[0].tolist():
        assert weight == 0 or threshold <= weight <= 1


def test_a_row_is_served_alike_alone_and_in_a_batch():
    logits_BD = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    together = serve_weights(logits_BD, DOMAINS, {"chat": 0.2}, 0.12)
    alone = torch.cat([serve_weights(row[None], DOMAINS, {"chat": 0.2}, 0.12) for row in logits_BD])
    assert torch.equal(together, alone)
