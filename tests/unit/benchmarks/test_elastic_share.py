"""What a log of steps says of the time that went into them."""

import math

import pytest

from benchmarks.elastic import Seen, told


def made(*places: tuple[float, int]) -> list[Seen]:
    return [Seen(at, step, resumed=False) for at, step in places]


def test_steps_that_are_made_again_do_not_count():
    seen = [*made((0, 1), (10, 11)), Seen(25, 6, resumed=True), *made((30, 7), (40, 17))]
    found = told(seen, [12], ended=44)
    assert found.kept_s == pytest.approx(5 + 10)  # of ten steps five, then all
    assert found.whole_s == 44
    assert found.lost == 5
    assert found.first_steps == (18,)


def test_without_a_loss_all_of_it_counts():
    found = told(made((5, 1), (15, 11)), [], ended=15)
    assert (found.kept_s, found.whole_s, found.lost, found.first_steps) == (10, 10, 0, ())


def test_a_group_that_made_nothing_adds_nothing():
    seen = [*made((0, 1), (10, 11)), Seen(20, 11, resumed=True), Seen(30, 11, resumed=True), *made((40, 12), (50, 22))]
    found = told(seen, [11, 21, 60], ended=70)
    assert found.kept_s == 20
    assert found.lost == 0
    assert found.first_steps == (29, 19, math.inf)
