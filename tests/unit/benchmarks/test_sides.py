"""What the comparison of a null space's sides makes of an outcome table and of closing records."""

import dataclasses

import numpy as np
import pytest
from tiny_history import SITES, domain_record

from benchmarks.sides import compared_masks, figures, nats, wanted
from bs_cluster.records import RowLoss, Spread
from bs_cluster.store import Store
from bs_cluster.sweep.outcomes import OutcomeTable

DOMAINS = ("aa", "bb", "cc")


def table(left_out: tuple[int, int] | None = None) -> OutcomeTable:
    """A row of each of two domains and one of none; row r's loss under mask m is r + m nats per token."""
    found = OutcomeTable(["a", "mixed", "b"], ["aa", "mixed:x", "bb"], DOMAINS)
    for row in range(3):
        for mask in range(8):
            if (row, mask) != left_out:
                found.record(row, mask, RowLoss((row + mask) * (row + 1.0), row + 1))
    return found


def test_own_and_one_other_is_the_mean_over_all_others():
    assert compared_masks(1, 3) == {"own": [0b010], "own and one other": [0b011, 0b110], "all": [0b111]}


def test_rows_that_no_domain_owns_are_left_out_and_losses_are_summed_over_tokens():
    by_column, tokens_B, ids = nats(table())
    assert ids == ["a", "b"]
    np.testing.assert_array_equal(tokens_B, [1, 3])
    np.testing.assert_allclose(by_column["own"], [1 * 1, (2 + 2) * 3])
    np.testing.assert_allclose(by_column["own and one other"], [(3 + 5) / 2, (2 + (3 + 6) / 2) * 3])
    np.testing.assert_allclose(by_column["all"], [7, 9 * 3])


@pytest.mark.parametrize(("left_out", "asked"), [(None, []), ((2, 6), [(2, 6)]), ((0, 6), []), ((1, 7), [])])
def test_only_what_is_compared_and_missing_is_measured(left_out, asked):
    assert wanted(table(left_out)) == asked


def test_figures_are_the_range_over_records_and_the_worst_site(tmp_path):
    record = domain_record(Store(str(tmp_path), "demo"), "chat")
    spreads = [{"output": Spread(mean, worst, SITES[0])} for mean, worst in ((0.9, 0.7), (0.95, 0.8))]
    records = [dataclasses.replace(record, energy_held=held) for held in spreads]
    assert figures(records) == {"energy held, outputs": "0.900 to 0.950, worst site 0.700"}
