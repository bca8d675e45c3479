"""Batches: every request once, inside the budget, and cheaper than in the order they came."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.sweep.combinations import all_masks
from bs_cluster.sweep.plan import LENGTH_BAND, Batch, plan_answers, plan_work

lengths_and_requests = st.lists(st.integers(1, 400), min_size=1, max_size=12).flatmap(
    lambda lengths: st.tuples(
        st.just(lengths), st.sets(st.tuples(st.integers(0, len(lengths) - 1), st.integers(0, 31)), max_size=80)
    )
)


@given(lengths_and_requests, st.integers(50, 2000))
def test_each_request_is_planned_once_within_the_budget(case, batch_tokens):
    lengths, requests = case
    batches = plan_work(sorted(requests), lengths, batch_tokens)
    assert sorted(request for batch in batches for request in batch.requests) == sorted(requests)
    for batch in batches:
        row_lengths = [lengths[row] for row, _ in batch.requests]
        assert batch.length == max(row_lengths)
        assert batch.padded_tokens <= batch_tokens or len(batch.requests) == 1
        assert max(row_lengths) <= LENGTH_BAND * min(row_lengths)
    assert [batch.cost for batch in batches] == sorted((batch.cost for batch in batches), reverse=True)


@given(lengths_and_requests, st.integers(1, 20))
def test_each_answer_is_planned_once_and_the_base_s_stand_apart(case, size):
    lengths, pairs = case
    requests = [(row, (mask / 64, float(mask > 7))) for row, mask in pairs]
    batches = plan_answers(requests, lengths, size)
    assert sorted(request for batch in batches for request in batch) == sorted(requests)
    assert all(len(batch) <= size and len({any(gates) for _, gates in batch}) == 1 for batch in batches)
    assert plan_answers(sorted(requests)[::-1], lengths, size) == batches


@given(lengths_and_requests)
def test_the_plan_does_not_depend_on_the_order_of_requests(case):
    lengths, requests = case
    ordered = sorted(requests)
    assert plan_work(ordered, lengths, 500) == plan_work(ordered[::-1], lengths, 500)


def test_a_sweep_costs_less_than_row_by_row():
    lengths = np.random.default_rng(0).integers(20, 300, size=100).tolist()
    requests = [(row, mask) for row in range(100) for mask in all_masks(5)]
    planned = plan_work(requests, lengths, 4096)
    naive = [
        Batch(tuple(chunk), max(lengths[row] for row, _ in chunk))
        for chunk in (requests[i : i + 13] for i in range(0, len(requests), 13))
    ]
    assert sum(batch.cost for batch in planned) < 0.85 * sum(batch.cost for batch in naive)
    real_tokens = sum(lengths[row] for row, _ in requests)
    assert sum(batch.padded_tokens for batch in planned) < 1.15 * real_tokens
