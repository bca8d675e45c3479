"""Splits: what is held out, what moves when rows are added, what the fingerprint notices."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bs_cluster.config.schema import DataSection
from bs_cluster.data.rows import make_row
from bs_cluster.data.split import fingerprint, split_rows
from bs_cluster.errors import DataError


def rows_of(numbers, completion="yes"):
    return [make_row(f"question {number}", completion, "chat") for number in numbers]


def held_out_size(sweep, validation, cap=None):
    return DataSection(sweep_rows=sweep, validation_rows=validation, train_rows=cap)


numbers = st.sets(st.integers(0, 10_000), min_size=12, max_size=60)


@given(numbers, st.randoms())
def test_splits_cover_the_rows_do_not_overlap_and_ignore_the_order_of_reading(some, random):
    rows = rows_of(some)
    shuffled = rows.copy()
    random.shuffle(shuffled)
    splits = split_rows("chat", rows, [], held_out_size(4, 5))
    _, validation, sweep = splits
    assert (len(validation), len(sweep)) == (5, 4)
    assert sorted(row.id for split in splits for row in split) == sorted(row.id for row in rows)
    assert split_rows("chat", shuffled, [], held_out_size(4, 5)) == splits


@given(numbers, numbers)
def test_adding_rows_never_holds_out_a_row_that_was_trained_on(old, added):
    data = held_out_size(4, 5)
    train_before, _, _ = split_rows("chat", rows_of(old), [], data)
    _, validation, sweep = split_rows("chat", rows_of(old | added), [], data)
    assert not set(train_before) & {*validation, *sweep}


@given(numbers, numbers)
def test_under_a_filled_cap_adding_rows_never_trains_on_an_old_held_out_row(old, added):
    data = held_out_size(3, 3, cap=len(old) - 6)
    _, validation, sweep = split_rows("chat", rows_of(old), [], data)
    train_after, _, _ = split_rows("chat", rows_of(old | added), [], data)
    assert not set(train_after) & {*validation, *sweep}


def test_without_a_cap_old_held_out_rows_can_come_to_train_as_the_docstring_says():
    data = held_out_size(20, 20)
    _, validation, sweep = split_rows("chat", rows_of(range(100)), [], data)
    train_after, _, _ = split_rows("chat", rows_of(range(1000)), [], data)
    assert set(train_after) & {*validation, *sweep}


def test_rows_moved_in_only_train_and_count_against_the_cap():
    own, moved = rows_of(range(20)), rows_of(range(100, 110))
    train, validation, sweep = split_rows("chat", own, moved, held_out_size(5, 5))
    assert set(moved) <= set(train)
    assert not set(moved) & {*validation, *sweep}
    assert len(split_rows("chat", own, moved, held_out_size(5, 5, cap=7))[0]) == 7


def test_too_few_rows_names_the_domain_the_numbers_and_the_way_out():
    message = r"domain 'chat': 9 usable rows.*validation_rows=5.*sweep_rows=4.*add a source, raise its take, or lower"
    with pytest.raises(DataError, match=message):
        split_rows("chat", rows_of(range(9)), [], held_out_size(4, 5))


words = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), max_size=4)


@settings(max_examples=200)
@given(words, words, words, words)
def test_the_fingerprint_is_equal_exactly_when_the_splits_are(train_a, sweep_a, train_b, sweep_b):
    first, second = (
        {"train": [make_row(*pair, "d") for pair in train], "sweep": [make_row(*pair, "d") for pair in sweep]}
        for train, sweep in ((train_a, sweep_a), (train_b, sweep_b))
    )
    assert (fingerprint(**first) == fingerprint(**second)) == (first == second)


def test_a_row_is_named_by_its_content_not_by_its_domain_or_the_case_of_its_prompt():
    assert make_row("What is  AI?", "x", "chat").id == make_row("what is ai?", "x", "code").id
    assert make_row("What is AI?", "x", "chat").id != make_row("What is AI?", "X", "chat").id
    assert len(make_row("a", "b", "c").id) == 16
