"""The outcome table: what goes in comes out, and what cannot be true is refused."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.errors import DataError, IntegrityError
from bs_cluster.records import RowLoss
from bs_cluster.sweep.combinations import active_mask, all_masks, mask_names, mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.owners import kind_of

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
    assert table.missing([0b101, 0]).tolist() == [[0, 0], [1, 0b101], [1, 0]]
    assert table.tokens_B.tolist() == [3, 0]


def test_repeated_measurements_agree_and_the_first_is_kept():
    """The lower of two would make every minimum over combinations look better than it is."""

    def measured(*losses):
        table = OutcomeTable(["q1"], ["chat"], DOMAINS)
        for loss in losses:
            table.record(0, 1, RowLoss(loss, 10))
        return table.losses(0)[1]

    assert measured(20.0, 20.25) == 2.0
    assert measured(20.25, 20.0) == 2.025
    with pytest.raises(IntegrityError, match=r"q1.*chat.*measured twice"):
        measured(20.0, 26.0)


def test_the_best_of_noisy_repeats_is_not_biased():
    """Thirty-two equal combinations, each measured three times: the oracle is off by the noise of one, not of three."""
    draw = np.random.default_rng(0)
    table = OutcomeTable([f"q{row}" for row in range(200)], ["chat"] * 200, (*"abcd", "chat"))
    first_BC = np.zeros((200, 32))
    for repeat in range(3):
        for row in range(200):
            for mask in range(32):
                loss = RowLoss(20 + draw.normal(0, 0.1), 10)
                table.record(row, mask, loss)
                if repeat == 0:
                    first_BC[row, mask] = loss.mean
    np.testing.assert_allclose(table.loss_BC(range(32)), first_BC, rtol=1e-6)


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


def test_rows_of_nobody_are_taken_and_told_apart():
    table = OutcomeTable(["q1", "q2"], ["mixed:doses", "foreign:manual"], DOMAINS)
    assert [kind_of(owner, DOMAINS) for owner in (*table.owners, "chat")] == ["mixed", "foreign", "domain"]
    with pytest.raises(DataError, match="mixed:"):
        OutcomeTable(["q1"], ["mixed:"], DOMAINS)


def test_parts_that_repeat_an_outcome_are_read_in_their_order():
    first, second = (OutcomeTable(["q1"], ["chat"], DOMAINS) for _ in range(2))
    first.record(0, 1, RowLoss(20.25, 10))
    second.record(0, 1, RowLoss(20.0, 10))
    both = pa.concat_tables([first.to_arrow(), second.to_arrow()])
    assert OutcomeTable.from_arrow(both).losses(0) == {1: 2.025}


def test_a_large_table_stays_small_and_whole():
    """A quarter million outcomes come and go as arrays."""
    rows = 8192
    arrow = pa.table(
        {
            "row_id": np.repeat([f"q{row:05}" for row in range(rows)], 32),
            "domain": np.repeat(["a"], rows * 32),
            "mask": np.tile(np.arange(32), rows),
            "nll": np.arange(rows * 32, dtype=np.float32),
            "tokens": np.full(rows * 32, 4),
        }
    ).replace_schema_metadata({"domains": '["a", "b", "c", "d", "e"]'})
    table = OutcomeTable.from_arrow(arrow)
    assert len(table) == rows * 32
    np.testing.assert_array_equal(table.nll_BC(range(32)), np.arange(rows * 32).reshape(rows, 32))
    assert table.to_arrow().column("nll").equals(arrow.column("nll"))


def test_a_sparse_table_costs_by_outcome_not_by_combination():
    """Rows that share hardly a combination: a column of rows for each would take twenty thousand bytes an outcome."""
    rows, each = 5000, 20
    draw = np.random.default_rng(0)
    row_N = np.repeat(np.arange(rows), each)
    mask_N = draw.integers(0, 2**40, rows * each)
    nll_N, tokens_N = draw.uniform(1, 9, rows * each), np.full(rows * each, 3)
    table = OutcomeTable([f"q{row}" for row in range(rows)], ["d0"] * rows, [f"d{d}" for d in range(40)])
    tracemalloc.start()
    table.add(row_N, mask_N, nll_N, tokens_N)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200 * rows * each  # with the numbers of as many combinations as outcomes
    assert peak < 400 * rows * each
    np.testing.assert_array_equal(table.nll(row_N, mask_N), nll_N.astype(np.float32))
    assert np.isnan(table.nll(row_N, mask_N ^ 1)).all()


def test_measurements_come_in_any_order_and_in_any_pieces():
    draw = np.random.default_rng(1)
    row_N, mask_N = (part.ravel() for part in np.meshgrid(np.arange(6), np.arange(8)))
    nll_N, tokens_N = draw.uniform(1, 9, 48), row_N + 2
    found = []
    for pieces in (1, 5, 48):
        table = OutcomeTable([f"q{row}" for row in range(6)], ["chat"] * 6, DOMAINS)
        for part in np.array_split(draw.permutation(48), pieces):
            table.add(row_N[part], mask_N[part], nll_N[part], tokens_N[part])
        found.append(table.to_arrow())
        np.testing.assert_array_equal(table.best_nll(), np.nanmin(table.nll_BC(range(8)), axis=1))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


def test_a_repeat_within_one_piece_is_held_against_the_first():
    table = OutcomeTable(["q1"], ["chat"], DOMAINS)
    rows, masks, tokens = np.zeros(2, dtype=int), np.ones(2, dtype=int), np.full(2, 10)
    table.add(rows, masks, np.array([20.25, 20.0]), tokens)
    assert table.losses(0) == {1: 2.025}
    with pytest.raises(IntegrityError, match=r"measured twice, as 2\.0000 and 2\.6000"):
        OutcomeTable(["q1"], ["chat"], DOMAINS).add(rows, masks, np.array([20.0, 26.0]), tokens)
    with pytest.raises(IntegrityError, match="over 10 and over 11 tokens"):
        OutcomeTable(["q1"], ["chat"], DOMAINS).add(rows, masks ^ np.array([0, 1]), np.ones(2), np.array([10, 11]))
