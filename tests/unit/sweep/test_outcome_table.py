"""The outcome table: what goes in comes out, and what cannot be true is refused."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.errors import DataError, IntegrityError
from bs_cluster.records import RowLoss
from bs_cluster.sweep.combinations import active_mask, all_masks, mask_names, mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.summary import summarise

DOMAINS = ("chat", "code", "math")


def make_table() -> OutcomeTable:
    """Row q2 (math) at 1.0 under the base, row q1 (chat) likewise; each domain in a mask takes 0.1 off its own row."""
    table = OutcomeTable(["q2", "q1"], ["math", "chat"], DOMAINS)
    for row, own in enumerate((2, 0)):
        for mask in all_masks(3):
            table.record(
                row, mask, RowLoss(nll=4 * (1.0 - 0.1 * (mask >> own & 1) + 0.01 * mask.bit_count()), tokens=4)
            )
    return table


@given(st.integers(1, 8).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, 2**d - 1))))
def test_masks_weights_and_names_are_one_thing(case):
    domain_count, mask = case
    domains = [f"d{d}" for d in range(domain_count)]
    assert active_mask(mask_weights(mask, domain_count)) == mask
    assert sum(1 << domains.index(name) for name in mask_names(mask, domains)) == mask


def test_arrow_round_trip_is_canonical():
    arrow = make_table().to_arrow()
    assert OutcomeTable.from_arrow(arrow).to_arrow().equals(arrow, check_metadata=True)
    assert arrow.column("row_id").to_pylist() == ["q1"] * 8 + ["q2"] * 8
    shuffled = arrow.take(np.random.default_rng(0).permutation(len(arrow)))
    assert OutcomeTable.from_arrow(shuffled).to_arrow().equals(arrow, check_metadata=True)


def test_an_empty_table_round_trips():
    arrow = OutcomeTable(["q1"], ["chat"], DOMAINS).to_arrow()
    assert arrow.num_rows == 0
    assert len(OutcomeTable.from_arrow(arrow)) == 0


def test_losses_are_per_token_and_nan_where_unmeasured():
    table = OutcomeTable(["q1", "q2"], ["chat", "math"], DOMAINS)
    table.record(0, 0b101, RowLoss(nll=6.0, tokens=3))
    np.testing.assert_array_equal(table.loss_BC([0b101, 0]), [[2.0, np.nan], [np.nan, np.nan]])
    assert table.missing([0b101, 0]) == [(0, 0), (1, 0b101), (1, 0)]
    assert table.tokens_B.tolist() == [3, 0]


def test_repeated_measurements_agree_in_any_order_or_are_refused():
    def measured(*losses):
        table = OutcomeTable(["q1"], ["chat"], DOMAINS)
        for loss in losses:
            table.record(0, 1, RowLoss(loss, 10))
        return table.losses(0)[1]

    assert measured(20.0, 20.3) == measured(20.3, 20.0) == 2.0
    with pytest.raises(IntegrityError, match=r"q1.*chat.*measured twice"):
        measured(20.0, 26.0)


@pytest.mark.parametrize("loss", [RowLoss(float("nan"), 3), RowLoss(float("inf"), 3), RowLoss(1.0, 0)])
def test_a_broken_loss_is_refused(loss):
    with pytest.raises(IntegrityError, match="q1"):
        OutcomeTable(["q1"], ["chat"], DOMAINS).record(0, 0, loss)


def test_changed_data_and_changed_domain_order_are_refused():
    table = OutcomeTable(["q1"], ["chat"], DOMAINS)
    table.record(0, 0, RowLoss(1.0, 3))
    with pytest.raises(IntegrityError, match="3 and over 4 tokens"):
        table.record(0, 1, RowLoss(1.0, 4))
    with pytest.raises(IntegrityError, match="cannot be read as"):
        OutcomeTable(["q1"], ["chat"], DOMAINS[::-1]).update(table)
    with pytest.raises(IntegrityError, match="domain order"):
        OutcomeTable.from_arrow(pa.table(table.to_arrow().to_pydict()))


def test_rows_must_be_unique_and_of_the_bundle():
    with pytest.raises(DataError, match="twice"):
        OutcomeTable(["q1", "q1"], ["chat", "chat"], DOMAINS)
    with pytest.raises(DataError, match="poetry"):
        OutcomeTable(["q1"], ["poetry"], DOMAINS)


def test_subset_keeps_order_and_values():
    table = make_table()
    part = table.subset([1])
    assert part.row_ids == ("q1",)
    np.testing.assert_array_equal(part.loss_BC(all_masks(3)), table.loss_BC(all_masks(3))[[1]])


def test_summary_of_a_hand_made_table():
    outcomes = summarise(make_table())
    assert outcomes.best_mask_B.tolist() == [0b100, 0b001]
    np.testing.assert_allclose(outcomes.oracle_B, [0.91, 0.91])
    np.testing.assert_allclose(outcomes.label_B, outcomes.oracle_B)
    np.testing.assert_allclose(outcomes.all_on_B, [0.93, 0.93])
    np.testing.assert_allclose(outcomes.base_B, [1.0, 1.0])
    assert outcomes.oracle == pytest.approx({"chat": 0.91, "math": 0.91})


def test_summary_wants_the_anchors():
    with pytest.raises(DataError, match="finish the sweep"):
        summarise(OutcomeTable(["q1"], ["chat"], DOMAINS))
