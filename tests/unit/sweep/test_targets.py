"""Targets: the axioms of the Shapley value, the limits of softmin, and the paper's rules on hand-made tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.config.schema import SweepSection, TargetsSection
from bs_cluster.errors import ConfigError, DataError
from bs_cluster.records import RowLoss
from bs_cluster.sweep.combinations import mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.targets import check_targets, parsimonious_mask, shapley_BD, targets_BD


def table_of(losses, domains, label: str | None = None) -> OutcomeTable:
    """One row with ``losses`` by mask (a dict, or a full list)."""
    table = OutcomeTable(["q"], [label or domains[0]], domains)
    for mask, loss in dict(losses if isinstance(losses, dict) else enumerate(losses)).items():
        table.record(0, mask, RowLoss(float(loss), 1))
    return table


def names(domain_count: int) -> list[str]:
    return [f"d{d}" for d in range(domain_count)]


full_tables = st.integers(1, 5).flatmap(
    lambda d: st.lists(st.floats(0.1, 5.0), min_size=2**d, max_size=2**d).map(lambda losses: (d, losses))
)


@given(full_tables)
def test_shapley_is_efficient(case):
    domain_count, losses = case
    value_D = shapley_BD(table_of(losses, names(domain_count)))[0]
    assert value_D.sum() == pytest.approx(losses[0] - losses[-1], abs=1e-6)


@given(st.lists(st.floats(0.1, 5.0), min_size=8, max_size=8))
def test_shapley_of_interchangeable_domains_is_equal(losses):
    symmetric = [losses[(m & ~3) | min(m & 3, (m & 1) << 1 | (m >> 1 & 1))] for m in range(8)]
    value_D = shapley_BD(table_of(symmetric, names(3)))[0]
    assert value_D[0] == pytest.approx(value_D[1], abs=1e-6)


@given(st.lists(st.floats(0.1, 5.0), min_size=8, max_size=8))
def test_shapley_of_a_domain_that_changes_nothing_is_zero(losses):
    value_D = shapley_BD(table_of([losses[m & ~2] for m in range(8)], names(3)))[0]
    assert value_D[1] == pytest.approx(0.0, abs=1e-6)


def test_shapley_targets_are_shares_of_the_most_worthy():
    # Independent worths 0.4, 0.1, -0.2, and 0.005, which is noise.
    worth = np.array([0.4, 0.1, -0.2, 0.005])
    losses = [2.0 - float(np.dot(mask_weights(m, 4), worth)) for m in range(16)]
    target_D = targets_BD(table_of(losses, names(4)), TargetsSection(kind="shapley"))[0]
    np.testing.assert_allclose(target_D, [1.0, 0.25, 0.0, 0.0], atol=1e-9)


def test_shapley_refuses_an_adaptive_search_early_and_a_partial_table_late():
    settings = TargetsSection(kind="shapley")
    check_targets(settings, names(6), SweepSection())
    with pytest.raises(ConfigError, match="exhaustive"):
        check_targets(settings, names(7), SweepSection())
    check_targets(TargetsSection(kind="softmin"), names(7), SweepSection())
    with pytest.raises(DataError, match="1 are not measured"):
        targets_BD(table_of({0: 1.0, 1: 0.9, 2: 0.8}, names(2)), settings)


@given(full_tables.filter(lambda case: len(case[1]) > 1))
def test_softmin_freezes_into_the_best_subset(case):
    domain_count, losses = case
    # Steps of 0.1 plus less than that by mask: no two combinations tie.
    losses = [loss + 0.001 * mask for mask, loss in enumerate(np.round(losses, 1))]
    target_D = targets_BD(table_of(losses, names(domain_count)), TargetsSection(kind="softmin", temperature=1e-5))[0]
    np.testing.assert_allclose(target_D, mask_weights(int(np.argmin(losses)), domain_count), atol=1e-6)


def test_softmin_melts_into_one_half():
    target_D = targets_BD(table_of([1.0, 5.0, 2.0, 0.1], names(2)), TargetsSection(kind="softmin", temperature=1e6))[0]
    np.testing.assert_allclose(target_D, [0.5, 0.5], atol=1e-5)


def test_softmin_draws_from_what_was_measured():
    table = table_of({0: 1.0, 1: 0.5, 2: 1.0, 7: 1.0}, names(3))
    target_D = targets_BD(table, TargetsSection(kind="softmin", temperature=0.01))[0]
    np.testing.assert_allclose(target_D, [1.0, 0.0, 0.0], atol=1e-9)


PAPER = TargetsSection(boost_domain=None, prior_blend=0.0)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 0.8, 0.9, 0.795], [1, 0]),  # the second domain gains 0.005: not worth it
        ([1.0, 0.8, 0.9, 0.78], [1, 1]),  # 0.02: worth it
        ([1.0, 0.995, 1.2, 1.2], [0, 0]),  # nothing gains enough over the base
        ([1.0, 0.99, 0.99, 0.5], [1, 1]),  # only together do they help: greedy would stop at the base
    ],
)
def test_paper_takes_the_parsimonious_best(losses, expected):
    np.testing.assert_array_equal(targets_BD(table_of(losses, names(2)), PAPER)[0], expected)


@given(full_tables, st.floats(0.001, 0.5))
def test_every_domain_of_the_parsimonious_set_pays_for_itself(case, parsimony):
    domain_count, losses = case
    best = parsimonious_mask(dict(enumerate(losses)), parsimony)
    for d in range(domain_count):
        if best >> d & 1:
            assert losses[best & ~(1 << d)] - losses[best] >= parsimony - 1e-12
        else:
            assert losses[best] - losses[best | 1 << d] <= parsimony + 1e-12


def test_paper_boosts_the_named_domain_where_it_helps_a_little():
    settings = TargetsSection(boost_domain="reasoning", boost_value=0.5, prior_blend=0.0)
    domains = ["math", "reasoning"]
    assert targets_BD(table_of([1.0, 0.8, 0.9, 0.795], domains), settings)[0].tolist() == [1.0, 0.5]
    assert targets_BD(table_of([1.0, 0.8, 0.9, 0.805], domains), settings)[0].tolist() == [1.0, 0.0]
    assert targets_BD(table_of({0: 1.0, 1: 0.8, 2: 0.9}, domains), settings)[0].tolist() == [1.0, 0.0]


def test_paper_blends_in_the_label():
    settings = TargetsSection(boost_domain=None, prior_blend=0.2)
    target_D = targets_BD(table_of([1.0, 0.8, 0.9, 0.8], names(2), label="d1"), settings)[0]
    np.testing.assert_allclose(target_D, [0.8, 0.2])


@given(full_tables, st.sampled_from(["paper", "softmin", "shapley"]))
def test_targets_are_always_probabilities(case, kind):
    domain_count, losses = case
    target_BD = targets_BD(table_of(losses, names(domain_count)), TargetsSection(kind=kind, boost_domain="d0"))
    assert target_BD.dtype == np.float64
    assert target_BD.shape == (1, domain_count)
    assert ((target_BD >= 0) & (target_BD <= 1)).all()


def test_an_unmeasured_row_is_refused():
    with pytest.raises(DataError, match="sweep them first"):
        targets_BD(OutcomeTable(["q"], ["d0"], ["d0"]), PAPER)
