"""Judging shard by shard comes to what judging all at once does, and holds few states at a time."""

import dataclasses

import numpy as np
import pytest
from worlds import DOMAINS, OWN, interpolated, judge, lessons

from bs_cluster.config.schema import RouterSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.records import RowLoss
from bs_cluster.router import judging
from bs_cluster.router.fit import Lessons, teach
from bs_cluster.router.folds import deal_folds, sample_rows
from bs_cluster.router.gated import gated_nll
from bs_cluster.router.judging import judge_shard
from bs_cluster.router.multilinear import served_gates
from bs_cluster.router.regret import Judged, routing_groups
from bs_cluster.sweep.combinations import all_masks
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.shards import Shard

NEEDS = {**OWN, "mixed:chat_math": 0b101, "foreign:1": 0}


def encoded(lessons: Lessons) -> list[EncodedRow]:
    table = lessons.table
    return [
        EncodedRow((place, 1, 2), 2, row_id, owner)
        for place, (row_id, owner) in enumerate(zip(table.row_ids, table.owners, strict=True))
    ]


def judged_in_shards(taught: Lessons, known, size: int, asked=None) -> Judged:
    """Prompts are their rows' numbers, and states are encoded when asked for."""
    table, rows = taught.table, encoded(taught)
    fold_B = deal_folds(table.row_ids, table.owners, DOMAINS, taught.settings.folds, taught.seed)
    sample = np.array(sorted(known))
    own = dataclasses.replace(
        taught, table=table.subset(sample), states=[taught.states[row] for row in sample.tolist()]
    )
    judges = teach(own, fold_B[sample], np.unique(fold_B).tolist(), interpolated(own.table)).judges

    def encode(prompts):
        if asked is not None:
            asked.append([place for place, *_ in prompts])
        return [taught.states[place] for place, *_ in prompts]

    found = []
    for start in range(0, len(rows), size):
        here = range(start, min(start + size, len(rows)))
        shard = Shard(start, [rows[place] for place in here], table.subset(here), 0)
        prompts = [row.input_ids for row in rows]
        states = {place: taught.states[place] for place in known}
        found.append(judge_shard(judges, shard, prompts, fold_B, states, encode, interpolated(shard.table)))
    return Judged.together(found)


def test_shards_change_no_judgement():
    taught = lessons(NEEDS, rows=12)
    rows = range(len(taught.states))
    whole, found = judge(taught), judged_in_shards(taught, rows, 7)
    assert found.row_ids == whole.row_ids
    for one, other in zip(found.fitted, whole.fitted, strict=True):
        np.testing.assert_array_equal(one, other)
    for policy, nll_B in whole.nll.items():
        np.testing.assert_allclose(found.nll[policy], nll_B, rtol=1e-6)


def test_a_row_that_did_not_teach_is_encoded_once_and_few_at_a_time(monkeypatch):
    taught = lessons(NEEDS, rows=24)
    monkeypatch.setattr(judging, "STATES_NUMBERS", 5 * len(taught.anchor.centre_F))
    sample = sample_rows(taught.table.row_ids, taught.table.owners, 60).tolist()
    asked: list[list[int]] = []
    found = judged_in_shards(taught, sample, 16, asked)
    assert sorted(place for places in asked for place in places) == sorted({*range(120)} - {*sample})
    assert max(map(len, asked)) == 5
    regret = routing_groups(found)[0]["domain"].regret()
    assert regret is not None
    assert regret < 0.15


def test_whole_gates_are_read_off_the_table_and_others_are_scored_once():
    table = OutcomeTable(["q0", "q1"], ["chat", "math"], DOMAINS)
    table.record(0, 0b001, RowLoss(12.0, 10))
    table.record(1, 0b000, RowLoss(30.0, 10))
    asked = []

    def score(row_N, gates_ND):
        asked.append((row_N.tolist(), gates_ND.tolist()))
        return 1.0 * np.arange(len(row_N))

    row_N = np.array([0, 1, 0, 0, 1, 0])
    gates_ND = np.array([[1, 0, 0], [0, 0, 0], [0.5, 0, 0], [1, 0, 1], [1, 0, 0], [0.5, 0, 0]])
    found_N = gated_nll(table, row_N, gates_ND, score)
    # A whole combination that was not measured is asked for like any other gates.
    assert asked == [([0, 0, 1], [[0.5, 0, 0], [1, 0, 1], [1, 0, 0]])]
    assert found_N.tolist() == [12, 30, 0, 1, 2, 0]
    assert gated_nll(table, row_N[:2], gates_ND[:2], pytest.fail).tolist() == [12, 30]


def test_few_combinations_are_all_candidates_and_many_are_bounded():
    taught = lessons(NEEDS, learn_combinations=8)
    assert taught.masks(taught.table) == list(all_masks(3))
    few = dataclasses.replace(taught, settings=RouterSection(learn_combinations=6))
    # None, each alone and all in any case; of the others the pair that is best for the mixed rows.
    assert few.masks(taught.table) == [0, 1, 2, 4, 5, 7]
    # A pair that is no candidate is chosen by none of them, however high the two gates alone.
    logits_BD = np.array([[9.0, 9.0, -20.0], [9.0, -20.0, 9.0]])
    assert served_gates(logits_BD, few.masks(taught.table)).tolist() == [[0.5, 0.5, 0], [1, 0, 1]]


def test_a_sample_has_of_every_owner_alike_and_of_every_fold():
    owners = ["chat"] * 500 + ["code"] * 100 + ["math"] * 30 + ["foreign:1"] * 4
    ids = [f"q{row}" for row in range(len(owners))]
    sample = sample_rows(ids, owners, 184, seed=3)
    counts = {owner: sum(owners[row] == owner for row in sample) for owner in set(owners)}
    assert counts == {"chat": 75, "code": 75, "math": 30, "foreign:1": 4}
    fold_B = deal_folds(ids, owners, DOMAINS, 5, seed=3)
    assert np.bincount(fold_B[sample][:75]).tolist() == [15] * 5
    np.testing.assert_array_equal(sample_rows(ids, owners, 634), np.arange(634))
    backwards = sample_rows(ids[::-1], owners[::-1], 184, seed=3)
    assert sorted(633 - backwards) == sample.tolist()
