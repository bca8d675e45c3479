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


def test_a_group_that_begins_anew_has_lost_all_before_it():
    begins = Seen(20, 0, resumed=True)
    assert told([*made((0, 1), (10, 11)), begins, *made((30, 1), (40, 11))], [12], ended=40).lost == 10
    found = told([*made((0, 1), (10, 11)), begins, Seen(21, 8, resumed=True), *made((30, 9), (40, 19))], [12], ended=40)
    assert found.lost == 3
    assert found.kept_s == pytest.approx(7 + 10)
    assert found.first_steps == (18,)
