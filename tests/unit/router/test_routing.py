"""The meta-router on outcomes with known answers, and judged by rows that it never saw."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import BASE_LOSS, DOMAINS, GAIN, OWN, anchor_of, anchored, features, judge, lessons, taught_by

from bs_cluster.errors import DataError
from bs_cluster.records import RowLoss
from bs_cluster.router.fit import CrossFit
from bs_cluster.router.folds import deal_folds
from bs_cluster.router.learned import Gates, gate_inputs
from bs_cluster.router.learned_choice import HARM
from bs_cluster.router.multilinear import LEVELS
from bs_cluster.router.regret import RoutingReport, measured_nll, policy_nll, routing_report
from bs_cluster.router.routers import AnchoredRouter
from bs_cluster.sweep.combinations import all_masks
from bs_cluster.sweep.outcomes import OutcomeTable

FOREIGN = {f"foreign:{n}": 0 for n in range(4)}


def served_masks(taught, owner: str, measured=None) -> np.ndarray:
    """The domains to which a router taught by all rows gives more than half their weight, for fresh prompts."""
    return mostly(taught_by(taught, measured).served.gates(list(features(owner, 60, seed=99))))


def mostly(gates_BD: np.ndarray) -> np.ndarray:
    return (gates_BD > 0.5) @ (1 << np.arange(gates_BD.shape[1]))


def report_of(taught) -> RoutingReport:
    return routing_report(taught.settings, judge(taught), taught_by(taught).served)


def test_where_a_label_suffices_the_label_is_served():
    taught = lessons(OWN)
    for owner, need in OWN.items():
        assert (served_masks(taught, owner) == need).mean() >= 0.95
    own = report_of(taught).kinds["domain"]
    # Losses are linear in gates here: each step below one costs its share of the gain.
    assert own.routed_minus["label"].high <= 1.5 * GAIN / LEVELS
    assert own.loss["routed"] == pytest.approx(BASE_LOSS - GAIN, abs=1.5 * GAIN / LEVELS)


def test_where_a_pair_is_needed_the_pair_is_served():
    taught = lessons({**OWN, "mixed:chat_math": 0b101}, rows=24)
    assert (served_masks(taught, "mixed:chat_math") == 0b101).mean() >= 0.9
    for owner, need in OWN.items():
        assert (served_masks(taught, owner) == need).mean() >= 0.9
    mixed = report_of(taught).kinds["mixed"]
    for rival in ("base", "best_single", "anchor"):
        assert mixed.routed_minus[rival].high < 0, rival
    assert "label" not in mixed.loss


def test_where_a_label_misleads_it_is_left():
    """Code's rows are served best by chat's stacks."""
    taught = lessons({**OWN, "code": OWN["chat"]}, rows=24)
    assert (served_masks(taught, "code") == OWN["chat"]).mean() >= 0.9
    report = report_of(taught)
    assert report.served == "learned"
    assert report.everywhere
    assert report.change is not None
    assert report.change.high < 0
    assert report.owners["code"].routed_minus["label"].high < 0


def test_gates_that_do_not_decide_everywhere_leave_a_domain_s_prompts_to_it():
    anchor = anchor_of()
    states = np.concatenate([features(owner, 30, seed=5) for owner in (*DOMAINS, "foreign:1")])
    prompts = gate_inputs(anchor, states)
    weight_PD = np.random.default_rng(0).normal(size=(prompts.inputs_BP.shape[1], len(DOMAINS)))
    within_B = (prompts.anchor_BD > 0).any(axis=1)
    assert 0 < within_B.sum() < len(states)
    careful_BD, free_BD = (Gates(weight_PD, everywhere).logits(prompts) for everywhere in (False, True))
    np.testing.assert_array_equal(careful_BD[within_B], prompts.anchor_BD[within_B])
    np.testing.assert_array_equal(careful_BD[~within_B], free_BD[~within_B])
    assert (free_BD[within_B] != prompts.anchor_BD[within_B]).any(axis=1).all()


def test_where_nothing_helps_the_base_is_served():
    taught = lessons({**OWN, "math": 0}, rows=24)
    assert (served_masks(taught, "math") == 0).mean() >= 0.9
    assert report_of(taught).owners["math"].loss["routed"] == pytest.approx(BASE_LOSS, abs=0.05)


def test_foreign_rows_of_kinds_never_met_get_the_base():
    report = report_of(lessons({**OWN, **FOREIGN}))
    foreign = report.kinds["foreign"]
    # Losses are linear in gates here: a gate of an eighth costs an eighth of the harm.
    assert foreign.routed_minus["base"].mean <= 0.02
    assert foreign.routed_minus["base"].high <= 0.05
    assert foreign.stayed_out >= 0.75


def test_where_there_is_nothing_to_learn_the_anchor_is_served():
    taught = lessons(OWN)
    flat = OutcomeTable(taught.table.row_ids, taught.table.owners, DOMAINS)
    for row in range(len(taught.states)):
        for mask in all_masks(3):
            flat.record(row, mask, RowLoss(10 * BASE_LOSS, 10))
    report = report_of(dataclasses.replace(taught, table=flat))
    assert report.served == "anchor"
    assert report.shrinkage is None
    assert "Served: the anchor" in report.notes[0]


@pytest.mark.parametrize("seed", range(6))
def test_random_outcomes_do_not_lead_away_from_the_anchor(seed):
    """Outcomes that are noise alone: on rows never seen, what is served stays within the tolerance of the anchor."""
    taught = lessons(OWN, rows=16, seed=seed)
    draw = np.random.default_rng(seed)
    table = OutcomeTable(taught.table.row_ids, taught.table.owners, DOMAINS)
    for row, owner in enumerate(taught.table.owners):
        for mask in all_masks(3):
            nats = BASE_LOSS - GAIN * bool(mask & OWN[owner]) + 0.3 * mask.bit_count() + 0.4 * draw.normal()
            table.record(row, mask, RowLoss(10 * max(nats, 0.01), 10))
    taught = dataclasses.replace(taught, table=table)
    nll = judge(taught).nll
    assert (nll["routed"] - nll["anchor"]).sum() / table.tokens_B.sum() <= 10 * HARM


def test_the_order_of_domains_changes_no_decision():
    taught = lessons({**OWN, "mixed:chat_math": 0b101})
    order = (2, 0, 1)
    names = tuple(DOMAINS[d] for d in order)
    permuted = OutcomeTable(taught.table.row_ids, taught.table.owners, names)

    def moved(mask: int) -> int:
        return sum((mask >> d & 1) << place for place, d in enumerate(order))

    for row in range(len(taught.states)):
        for mask, mean in taught.table.losses(row).items():
            permuted.record(row, moved(mask), RowLoss(10 * mean, 10))
    anchor = dataclasses.replace(
        taught.anchor,
        owner_N=np.array([order.index(d) for d in taught.anchor.owner_N.tolist()]),
        limit_D=taught.anchor.limit_D[list(order)],
        spread_D=taught.anchor.spread_D[list(order)],
        home_D=taught.anchor.home_D[list(order)],
    )
    other = dataclasses.replace(taught, table=permuted, anchor=anchor)
    one, permuted_BD = judge(taught).fitted.routed_BD[:, order], judge(other).fitted.routed_BD
    assert np.mean(np.abs(one - permuted_BD) <= 1 / LEVELS) >= 0.99


def test_the_same_seed_gives_the_same_router_and_the_same_judgement():
    taught = lessons({**OWN, "mixed:chat_math": 0b101, **FOREIGN})
    one, other = taught_by(taught).served.router, taught_by(taught).served.router
    assert isinstance(one, AnchoredRouter)
    assert isinstance(other, AnchoredRouter)
    assert one.learned is not None
    assert other.learned is not None
    np.testing.assert_array_equal(one.learned.weight_PD, other.learned.weight_PD)
    np.testing.assert_array_equal(one.kinds.mixed_MK, other.kinds.mixed_MK)
    first, second = report_of(taught), report_of(taught)
    assert first == second
    assert RoutingReport.from_dict(first.to_dict()) == first


def test_a_partial_table_teaches_the_same():
    """What an adaptive search leaves out is filled in for learning, and never for judging."""
    whole = lessons({**OWN, "mixed:chat_math": 0b101}, rows=24)
    table = OutcomeTable(whole.table.row_ids, whole.table.owners, DOMAINS)
    for row, owner in enumerate(table.owners):
        for mask, mean in whole.table.losses(row).items():
            if mask.bit_count() != 2 or (owner.startswith("mixed:") and mask == 0b101):
                table.record(row, mask, RowLoss(10 * mean, 10))
    part = dataclasses.replace(whole, table=table)
    for owner, need in {**OWN, "mixed:chat_math": 0b101}.items():
        assert (served_masks(part, owner, whole.table) == need).mean() >= 0.9
    unmeasured = np.full(len(table.owners), 0b011)
    with pytest.raises(DataError, match="not measured under mask 3"):
        measured_nll(table, unmeasured)


def test_policies_are_read_off_the_table():
    table = OutcomeTable(["c", "m", "x"], ["chat", "math", "mixed:chat_math"], DOMAINS)
    loss = {0: 30.0, 1: 20.0, 2: 40.0, 4: 25.0, 5: 10.0, 7: 50.0}
    for row in range(3):
        for mask, nll in loss.items():
            table.record(row, mask, RowLoss(nll, 10))
    fitted = CrossFit(np.full((3, 3), 0.5), np.zeros((3, 3)), np.array([1, 1, 4]))
    nll = policy_nll(table, fitted, np.array([21.0, 9, 29]), np.array([30.0, 30, 30]))
    assert (nll["routed"].tolist(), nll["anchor"].tolist()) == ([21, 9, 29], [30, 30, 30])
    assert nll["best_single"].tolist() == [20, 20, 25]
    assert (nll["base"].tolist(), nll["all_on"].tolist(), nll["oracle"].tolist()) == ([30] * 3, [50] * 3, [10] * 3)
    np.testing.assert_array_equal(nll["label"], [20, 25, np.nan])


@given(st.dictionaries(st.text("abcdef", min_size=1), st.sampled_from(["chat", "math", "mixed:a"]), min_size=12))
def test_folds_are_stratified_and_hang_on_the_rows_alone(rows):
    owners = list(rows.values())
    if any(0 < owners.count(domain) < 2 for domain in DOMAINS):
        return
    fold_B = deal_folds(list(rows), owners, DOMAINS, 4)
    for owner in set(owners):
        counts = np.bincount(fold_B[np.array(owners) == owner], minlength=4)
        assert counts.max() - counts.min() <= 1
    backwards = deal_folds(list(rows)[::-1], owners[::-1], DOMAINS, 4)
    np.testing.assert_array_equal(backwards[::-1], fold_B)


def test_a_foreign_kind_is_never_in_two_folds():
    owners = [f"foreign:{n}" for n in range(7) for _ in range(5)] + ["chat"] * 4
    fold_B = deal_folds([f"q{i}" for i in range(len(owners))], owners, DOMAINS, 3)
    for kind in set(owners) - {"chat"}:
        assert len(set(fold_B[np.array(owners) == kind])) == 1
    assert len(set(fold_B)) == 3


def test_a_domain_of_one_row_is_refused():
    with pytest.raises(DataError, match=r"'math' has 1.*sweep_rows"):
        deal_folds(["q1", "q2", "q3"], ["chat", "chat", "math"], DOMAINS, 2)


def test_a_row_that_occurs_twice_is_refused():
    with pytest.raises(DataError, match="'q1' occurs twice"):
        deal_folds(["q1", "q2", "q1"], ["chat", "chat", "chat"], DOMAINS, 2)


def test_every_row_is_judged_by_a_router_that_never_saw_it():
    """Rows whose outcomes contradict all others of their owner: a router that saw them would serve them rightly."""
    taught = lessons(OWN, rows=20)
    odd = [0, 25, 50]
    table = OutcomeTable(taught.table.row_ids, taught.table.owners, DOMAINS)
    for row in range(len(taught.states)):
        for mask, mean in taught.table.losses(row).items():
            table.record(row, mask ^ 7 if row in odd else mask, RowLoss(10 * mean, 10))
    routed_BD = judge(dataclasses.replace(taught, table=table)).fitted.routed_BD
    anchor_BD = anchored(taught.anchor).gates(taught.states, list(all_masks(3)))
    np.testing.assert_array_equal(mostly(routed_BD[odd]), mostly(anchor_BD[odd]))
