"""The search: exhaustive measures all; adaptive measures half at most and finds the same best."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bs_cluster.config.schema import SweepSection
from bs_cluster.records import RowLoss
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.search import next_requests, outcomes_per_row, search_kind

ADAPTIVE = SweepSection(search="adaptive")


def loss_tables(max_domains: int = 5):
    """(domain count, loss of every mask) of one row."""
    return st.integers(1, max_domains).flatmap(
        lambda d: st.tuples(st.just(d), st.lists(st.floats(0.1, 5.0), min_size=2**d, max_size=2**d))
    )


def empty_table(domain_count: int, rows: int = 1) -> OutcomeTable:
    domains = [f"d{d}" for d in range(domain_count)]
    return OutcomeTable([f"q{row}" for row in range(rows)], ["d0"] * rows, domains)


def search(table: OutcomeTable, losses, section: SweepSection, budget: int | None = None) -> dict[int, float]:
    """Answer requests from ``losses`` until the search ends or ``budget`` outcomes are measured; row 0's losses."""
    measured = 0
    while len(requests := next_requests(table, section)):
        for row, mask in requests.tolist():
            if measured == budget:
                return table.losses(0)
            table.record(row, mask, RowLoss(losses[mask], 1))
            measured += 1
    return table.losses(0)


def test_auto_turns_adaptive_above_its_limit():
    section = SweepSection(exhaustive_up_to=3)
    assert [search_kind(section, d) for d in (3, 4)] == ["exhaustive", "adaptive"]
    assert search_kind(SweepSection(search="exhaustive", exhaustive_up_to=3), 9) == "exhaustive"


def test_exhaustive_asks_for_all_that_is_missing():
    table = empty_table(2, rows=2)
    table.record(1, 3, RowLoss(1.0, 1))
    expected = [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2]]
    assert next_requests(table, SweepSection(search="exhaustive")).tolist() == expected


@given(loss_tables(7))
def test_adaptive_starts_with_what_reports_need_and_keeps_its_budget(case):
    domain_count, losses = case
    found = search(empty_table(domain_count), losses, ADAPTIVE)
    assert {0, 2**domain_count - 1, *(1 << d for d in range(domain_count))} <= set(found)
    assert len(found) <= outcomes_per_row(domain_count)


@given(loss_tables(5))
def test_adaptive_ends_at_a_combination_that_no_single_domain_betters(case):
    """Unless its budget ran out first."""
    domain_count, losses = case
    found = search(empty_table(domain_count), losses, ADAPTIVE)
    best = min(found, key=lambda mask: found[mask])
    neighbours = {best ^ (1 << d) for d in range(domain_count)}
    assert neighbours <= set(found) or len(found) == outcomes_per_row(domain_count)


@settings(max_examples=50)
@given(loss_tables(6), st.data())
def test_a_killed_search_ends_with_the_same_outcomes(case, data):
    domain_count, losses = case
    whole = search(empty_table(domain_count), losses, ADAPTIVE)
    table = empty_table(domain_count)
    search(table, losses, ADAPTIVE, budget=data.draw(st.integers(0, len(whole))))
    resumed = OutcomeTable.from_arrow(table.to_arrow()) if len(table) else empty_table(domain_count)
    assert search(resumed, losses, ADAPTIVE) == whole


def stacks_like_losses(rows: int, domain_count: int, seed: int) -> np.ndarray:
    """Losses (B, 2^D) as stacks give them: one or two domains help a row, the others hurt the more the more of them
    fire, domains interfere in pairs, and every number has the noise of a measurement."""
    draw = np.random.default_rng(seed)
    member_CD = np.array([[m >> d & 1 for d in range(domain_count)] for m in range(2**domain_count)])
    loss_BC = np.empty((rows, 2**domain_count))
    for row in range(rows):
        effect_D = draw.uniform(0.05, 0.6, domain_count)
        helpful = draw.choice(domain_count, size=draw.integers(1, 3), replace=False)
        effect_D[helpful] = -draw.uniform(0.2, 1.5, len(helpful))
        pair_DD = np.triu(draw.normal(0.1, 0.1, (domain_count, domain_count)), 1)
        both_C = np.einsum("cd,de,ce->c", member_CD, pair_DD, member_CD)
        loss_BC[row] = 3 + member_CD @ effect_D + both_C + draw.normal(0, 0.02, 2**domain_count)
    return loss_BC


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_finds_what_exhaustive_finds_at_half_the_outcomes(seed):
    rows, domain_count = 200, 5
    loss_BC = stacks_like_losses(rows, domain_count, seed)
    table = empty_table(domain_count, rows)
    while len(requests := next_requests(table, ADAPTIVE)):
        for row, mask in requests.tolist():
            table.record(row, mask, RowLoss(float(loss_BC[row, mask]), 1))
    found = [min(table.losses(row), key=lambda mask: loss_BC[row, mask]) for row in range(rows)]
    assert (np.array(found) == loss_BC.argmin(axis=1)).mean() >= 0.95
    assert len(table) <= rows * 2**domain_count / 2


def test_adaptive_leaves_most_of_a_large_table_alone():
    # Domains 2 and 7 help, every other one hurts: twelve domains have 4096 combinations.
    losses = [2.0 - 0.3 * (m >> 2 & 1) - 0.2 * (m >> 7 & 1) + 0.05 * m.bit_count() for m in range(2**12)]
    found = search(empty_table(12), losses, SweepSection())
    assert min(found, key=lambda mask: found[mask]) == 1 << 2 | 1 << 7
    assert len(found) <= 48
