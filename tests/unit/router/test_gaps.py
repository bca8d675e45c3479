"""Gaps with known answers: prompts that no domain serves are found, in the groups that they were planted in."""

import numpy as np
import pytest
from worlds import DOMAINS, anchor_of, features

from bs_cluster.campaign.gaps import AskedRow, Looked, group_gaps, telling_words
from bs_cluster.router.gaps import FEWEST, Standard, groups, likeness

ANCHOR = anchor_of()
OWN = 15  # sweep rows of each domain


def look(planted: dict[str, tuple[int, float, float]]) -> Looked:
    """Rows of three domains that gain as domains do, among them so many of each owner with these mean losses under the
    base and at best; an owner's states are those of ``worlds``, up to a dot in its name."""
    draw = np.random.default_rng(3)
    rows, states = [], []
    for owner, (count, base, best) in {**dict.fromkeys(DOMAINS, (OWN, 3.0, 1.0)), **planted}.items():
        states.append(features(owner.partition(".")[0], count, seed=len(states) + 20))
        scatter = 1 + 0.1 * draw.uniform(-1, 1, count)
        rows += [
            AskedRow(
                f"{owner}-{n}", owner, f"{owner} {n}", "yes", 10, base * s, best * s * (1 + 0.2 * (n % 3 - 1)), None
            )
            for n, s in enumerate(scatter)
        ]
    own = [row for row in rows if row.owner in DOMAINS]
    standard = Standard.of(np.array([row.base for row in own]), np.array([row.best for row in own]))
    return Looked.at(rows, np.concatenate(states), ANCHOR, standard)


def found(looked: Looked) -> list[dict[str, int]]:
    return [gap.owners for gap in group_gaps(ANCHOR, [looked])]


def test_a_planted_gap_is_found_whole_and_alone():
    looked = look({"foreign:0": (12, 3.0, 2.4), "foreign:1": (12, 3.0, 0.9)})
    assert found(looked) == [{"foreign:0": 12}]  # the other one lies as far, and is served well


def test_two_gaps_are_told_apart_and_the_one_that_promises_more_comes_first():
    gaps = group_gaps(ANCHOR, [look({"foreign:0": (12, 3.0, 2.2), "foreign:1": (24, 6.0, 5.0)})])
    assert [list(gap.owners) for gap in gaps] == [["foreign:1"], ["foreign:0"]]  # nobody else's rows are in either
    assert all(len(gap.rows) >= 12 for gap in gaps)  # a few that lie apart from their kind are in none
    assert gaps[0].promise > gaps[1].promise


def test_nothing_is_offered_where_nothing_is_poor():
    assert found(look({})) == []
    assert found(look({"foreign:0": (12, 3.0, 0.9), "mixed:chat_code": (12, 3.0, 0.8)})) == []


def test_prompts_within_a_domains_limit_are_poor_only_if_few_of_its_own_are_as_badly_served():
    looked = look({"chat.": (12, 3.0, 2.9)})
    assert looked.poor_B[-12:].all()
    assert [list(owners) for owners in found(looked)] == [["chat."]]
    near, far = (look({owner: (12, 3.0, 1.15)}).poor_B[-12:] for owner in ("chat.", "foreign:0"))
    assert (near.sum(), far.sum()) == (4, 8)  # the middle third is poor only where it is far from every domain


def test_what_the_base_knows_already_is_no_gap():
    assert found(look({"foreign:0": (12, 0.1, 0.1)})) == []


def test_fewer_rows_than_a_group_are_not_offered():
    assert found(look({"foreign:0": (FEWEST - 1, 3.0, 2.4)})) == []
    assert found(look({"foreign:0": (FEWEST, 3.0, 2.4)})) == [{"foreign:0": FEWEST}]


def test_a_promise_is_what_the_middle_row_of_a_domain_gains():
    looked = look({"foreign:0": (12, 3.0, 2.4)})
    (gap,) = group_gaps(ANCHOR, [looked])
    expected = sum(10 * (row.best - looked.standard.middle * row.base) for row in gap.rows)
    assert gap.promise == pytest.approx(expected)
    assert gap.loss("base") == pytest.approx(np.mean([row.base for row in gap.rows]))
    assert gap.loss("served") is None


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_average_linkage_whatever_the_order(seed):
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(40, 6)) + 2 * draw.normal(size=(5, 6))[draw.integers(5, size=40)]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    expected = {frozenset(rows) for rows in joined_by_hand(points, 0.4) if len(rows) >= FEWEST}
    assert expected
    assert {frozenset(rows.tolist()) for rows in groups(points, 0.4)} == expected
    order = draw.permutation(40)
    assert {frozenset(order[rows].tolist()) for rows in groups(points[order], 0.4)} == expected


def joined_by_hand(points: np.ndarray, least: float) -> list[list[int]]:
    """The two groups whose rows are most alike on average become one, until none are alike enough."""
    held = [[row] for row in range(len(points))]
    while True:
        pairs = [(a, b) for a in range(len(held)) for b in range(a)]
        cosines = [float(np.mean(points[held[a]] @ points[held[b]].T)) for a, b in pairs]
        if not pairs or max(cosines) < least:
            return held
        a, b = pairs[int(np.argmax(cosines))]
        held[b] += held.pop(a)


def test_the_rows_of_a_group_come_nearest_to_its_centre_first():
    points = ANCHOR.directions(features("foreign:0", 12, seed=9))
    (rows,) = groups(points, likeness(ANCHOR))
    to_centre = points[rows] @ points[rows].mean(axis=0)
    assert (np.diff(to_centre) <= 0).all()


def test_telling_words_are_those_that_others_lack():
    ours = ["Spell the word backward", "Spell all the backward", "spell backward, twice"]
    assert telling_words(ours, [*ours, "the sum of two", "the product", "the word"]) == ("backward", "spell")
