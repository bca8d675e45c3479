"""Near duplicates: nothing that is measured on was nearly trained on, in this domain or another."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.data.near_duplicates import HeldOut, Splits, drop_near_duplicates
from bs_cluster.data.rows import make_row

# A classification, asked about in both directions as the built-in medical domain does.
DRAW = random.Random(0)
NAMES = {
    f"{DRAW.choice('ABCDEFG')}{number}": "{}itis of the {}".format(*DRAW.sample(range(1000, 9999), 2))
    for number in range(10, 70)
}
MEANS = {c: make_row(f"What does the ICD-10-CM category {c} stand for?", f"{n}.", "medical") for c, n in NAMES.items()}
CODE = {
    c: make_row(f"What is the ICD-10-CM category of this diagnosis: {n}?", f"{c}.", "medical") for c, n in NAMES.items()
}


def splits(train=(), validation=(), sweep=()):
    return Splits(tuple(train), tuple(validation), tuple(sweep))


@given(st.sets(st.sampled_from(sorted(NAMES)), min_size=1, max_size=8))
def test_the_other_direction_of_a_held_out_question_is_not_trained_on_and_nothing_else_is_lost(held_out):
    others = [code for code in NAMES if code not in held_out]
    train = [*(CODE[code] for code in NAMES), *(MEANS[code] for code in others)]
    (after,) = drop_near_duplicates([splits(train, sweep=[MEANS[code] for code in held_out])], 0.55)
    assert set(train) - set(after.train) == {CODE[code] for code in held_out}
    assert len(after.sweep) == len(held_out)


def test_validation_gives_way_to_the_sweep_and_one_domain_to_an_earlier_ones_held_out_rows():
    a, b, c, d, e, *rest = NAMES
    first = splits([MEANS[code] for code in (c, d, *rest)], validation=[CODE[a], CODE[b]], sweep=[MEANS[a]])
    second = splits([MEANS[b], CODE[e]], validation=[CODE[d]], sweep=[CODE[a], CODE[c]])
    after_first, after_second = drop_near_duplicates([first, second], 0.55)
    assert (after_first.sweep, after_first.validation) == ((MEANS[a],), (CODE[b],))
    assert (after_second.sweep, after_second.validation) == ((CODE[c],), (CODE[d],))
    assert after_second.train == (CODE[e],)
    assert after_first.train == tuple(MEANS[code] for code in rest)  # the second's held-out rows count for it as well


def test_rows_near_to_each_other_may_both_be_trained_on():
    a, b, c, *_ = NAMES
    both = [MEANS[a], CODE[a]]
    (after,) = drop_near_duplicates([splits(both, [CODE[b]], [MEANS[c]])], 0.55)
    assert list(after.train) == both


WORDS = st.frozensets(st.sampled_from("abcdefghij"), min_size=1)


@given(st.lists(WORDS, min_size=1, max_size=12), WORDS, st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]), st.randoms())
def test_the_index_finds_what_comparing_with_every_row_finds(rows, asked, threshold, draw):
    weight = {word: draw.random() + 0.01 for word in "abcdefghij"}
    index = HeldOut(weight, threshold)
    kept = []

    def likeness(a, b):
        return sum(weight[word] for word in a & b) / sum(weight[word] for word in a | b)

    for row in (*rows, asked):
        best = max((likeness(row, other) for other in kept), default=0.0)
        if abs(best - threshold) > 1e-9:  # at the threshold itself the last bit decides
            assert index.near(row) == (best > threshold)
        if index.add(row):
            kept.append(row)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_training_rows_changes_nothing(seed):
    train = [*MEANS.values(), *CODE.values()]
    shuffled = random.Random(seed).sample(train, len(train))
    code, name = next(iter(NAMES.items()))
    sweep = [make_row(f"What is {name} called in ICD-10-CM?", f"{code}.", "medical")]
    (a,), (b,) = (drop_near_duplicates([splits(rows, sweep=sweep)], 0.4) for rows in (train, shuffled))
    assert set(a.train) == set(b.train)
