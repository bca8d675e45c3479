"""Packing covers every row once, keeps to the length, and depends on the rows alone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.data.encode import EncodedRow
from bs_cluster.training.packing import pack_rows

LENGTHS = st.lists(st.integers(2, 80), max_size=40)


def rows(lengths) -> list[EncodedRow]:
    return [EncodedRow(tuple(range(length)), 1, f"row{i:03d}", "chat") for i, length in enumerate(lengths)]


def size(unit) -> int:
    return sum(len(row.input_ids) for row in unit)


@given(LENGTHS, st.integers(4, 64))
def test_every_row_once_and_within_the_length(lengths, max_length):
    units = pack_rows(rows(lengths), max_length)
    assert sorted(row.id for unit in units for row in unit) == [row.id for row in rows(lengths)]
    assert all(size(unit) <= max_length or len(unit) == 1 for unit in units)


@given(LENGTHS, st.integers(4, 64), st.randoms())
def test_the_order_of_the_rows_does_not_matter(lengths, max_length, shuffler: random.Random):
    shuffled = rows(lengths)
    shuffler.shuffle(shuffled)
    assert pack_rows(shuffled, max_length) == pack_rows(rows(lengths), max_length)


@given(LENGTHS, st.integers(4, 64))
def test_no_two_units_would_fit_into_one(lengths, max_length):
    """What best fit promises: a row opens a unit only where it fits nowhere."""
    sizes = sorted(size(unit) for unit in pack_rows(rows(lengths), max_length))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > max_length


def test_a_row_goes_where_it_leaves_the_least_room():
    units = pack_rows(rows([7, 6, 3, 4]), 10)
    assert [[len(row.input_ids) for row in unit] for unit in units] == [[7, 3], [6, 4]]


def test_a_row_too_long_stands_alone():
    units = pack_rows(rows([12, 2]), 10)
    assert [[len(row.input_ids) for row in unit] for unit in units] == [[12], [2]]
