"""What the report says follows from the numbers it was given, and nothing else."""

import dataclasses
import json
import math
import random

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.report.campaign import DOMAINS, make_answers, make_inputs, make_losses, make_outcomes

from bs_cluster.errors import DataError
from bs_cluster.estimates import paired_difference, token_mean
from bs_cluster.promotion import decide, served_change
from bs_cluster.records import MODES, Spread, StackId
from bs_cluster.report.build import build_report
from bs_cluster.report.gains import mask_gains
from bs_cluster.report.record import ALL, EVERY, FOREIGN, MIXED, Finding, Report

OWNED = dict.fromkeys(DOMAINS, True)


def verdict(report, words):
    found = [v for v in (*report.findings, *report.checks) if words in v.statement]
    assert len(found) == 1, words
    return found[0]


def with_losses(**changes):
    return build_report(make_inputs(("chat",), losses=make_losses({"chat": True}, **changes)))


def without_losses(**changes):
    return make_inputs(losses=make_losses({}), **changes)


def test_has_the_keys_the_design_requires():
    report = json.loads(build_report(make_inputs()).to_json())
    wanted = (
        "campaign domains base stacks loss isolated_at_commit isolated_drift_max overlap capacity router sweep timing"
    )
    assert set(wanted.split()) <= set(report)
    assert all(
        {"domain", "round", "manifest", "val_before", "val_after", "committed"} <= set(s) for s in report["stacks"]
    )
    assert set(report["loss"]) == set(MODES)
    assert all(set(by_domain) == set(DOMAINS) for by_domain in report["loss"].values())
    assert set(report["isolated_at_commit"]) == set(DOMAINS)
    assert {"regret", "label_regret", "all_on_regret", "accuracy"} <= set(report["router"])
    assert {"rows", "combinations", "rows_per_s"} <= set(report["sweep"])
    assert all({"statement", "answer", "parts"} <= set(finding) for finding in report["findings"])
    assert all({"statement", "answer"} <= set(check) for check in report["checks"])


@pytest.mark.parametrize("inputs", [make_inputs(), make_inputs(("chat",)), make_inputs(committed=False)])
def test_what_is_written_is_what_is_read(inputs):
    report = build_report(inputs)
    assert Report.from_json(report.to_json()) == report


class TestLosses:
    def test_every_loss_is_the_token_mean_of_the_same_rows(self):
        inputs = make_inputs()
        report = build_report(inputs)
        for d in DOMAINS:
            own = inputs.losses.select([i for i, owner in enumerate(inputs.losses.owners) if owner == d])
            for mode in ("base", "isolated", "routed", "oracle"):
                assert report.loss[mode][d] == pytest.approx(token_mean(own.losses(mode)))
                assert report.losses[mode][d].rows == report.rows[d] == 24

    def test_regret_is_the_paired_difference_to_the_oracle(self):
        inputs = make_inputs()
        regret = paired_difference(inputs.losses.losses("routed"), inputs.losses.losses("oracle"))
        report = build_report(inputs)
        assert report.router.regrets["routed"][ALL] == regret
        assert report.router.regret == pytest.approx(regret.mean)
        assert report.key_metrics["regret/router"] == report.router.regret

    def test_rows_that_no_domain_owns_are_rows_of_their_own_and_in_no_total_of_domains(self):
        owners = {"chat": True, "mixed:dose": True, "foreign:news": True}
        report = build_report(make_inputs(("chat",), losses=make_losses(owners)))
        alone = build_report(make_inputs(("chat",), losses=make_losses({"chat": True})))
        assert report.owners == ("chat", "mixed:dose", "foreign:news")
        assert report.groups == (ALL, MIXED, FOREIGN)
        assert report.loss["isolated"]["mixed:dose"] is None
        assert report.losses["base"][MIXED] == report.losses["base"]["mixed:dose"]
        assert report.rows[ALL] == alone.rows[ALL] == 24


class TestFindings:
    STATEMENTS = (
        ("own stacks lower", "isolated", 0.0),
        ("beats the base", "routed", 0.0),
        ("beats all stacks on", "routed", 0.6),
        ("beats the best single", "routed", -0.3),
        ("no worse than routing by label", "routed", -0.98),
    )

    @pytest.mark.parametrize(("statement", "mode", "even"), STATEMENTS)
    def test_holds_fails_or_is_undecided_with_its_interval(self, statement, mode, even):
        assert verdict(with_losses(), statement).answer == "holds"
        assert verdict(with_losses(**{mode: 0.7}), statement).answer == "fails"
        found = verdict(with_losses(**{mode: even + 1e-4}, noise=0.3), statement)
        assert found.answer == "undecided"
        assert any(part.difference.low < part.difference.mean < part.difference.high for part in found.parts)

    @pytest.mark.parametrize(
        ("base", "routed", "answer"), [(0.1, 0.9, "holds"), (0.9, 0.1, "fails"), (0.5, 0.5, "undecided")]
    )
    def test_right_answers_are_counted_pair_by_pair(self, base, routed, answer):
        report = build_report(make_inputs(**make_answers(DOMAINS, rows_each=8, base=base, routed=routed)))
        finding = verdict(report, "more prompts right")
        assert finding.answer == answer
        (part,) = finding.parts
        right = {mode: report.answers.right[mode][EVERY] for mode in ("base", "routed")}
        assert part.difference.mean == pytest.approx(right["base"].mean - right["routed"].mean)
        assert part.difference.rows == right["base"].rows == 40
        assert report.key_metrics["accuracy/routed"] == right["routed"].mean
        assert sum(report.answers.right["routed"][d].count for d in DOMAINS) == right["routed"].count

    def test_equal_to_label_is_no_worse_and_a_stack_that_does_nothing_does_not_help(self):
        assert verdict(with_losses(routed=-1.0, noise=0.0), "by label").answer == "holds"
        report = build_report(make_inputs(("chat",), losses=make_losses({"chat": False})))
        assert verdict(report, "own stacks").answer == "fails"

    def test_one_domain_that_fails_is_enough(self):
        owners = OWNED | {"math": False}
        found = verdict(build_report(make_inputs(losses=make_losses(owners))), "own stacks")
        assert found.answer == "fails"
        assert {part.name for part in found.parts if part.answer == "fails"} == {"math"}

    @pytest.mark.parametrize(
        ("gain", "error", "answer"),
        [(0.1, 0.01, "holds"), (0.01, 0.05, "undecided"), (-0.1, 0.01, "fails")],
    )
    def test_later_rounds_are_judged_by_gain_and_error(self, gain, error, answer):
        inputs = without_losses()

        def changed(record):
            rounds = [dataclasses.replace(r, gain=gain, gain_error=error) for r in record.rounds]
            return dataclasses.replace(record, rounds=tuple(rounds))

        records = tuple(map(changed, inputs.records))
        found = verdict(build_report(dataclasses.replace(inputs, records=records)), "Later rounds")
        assert found.answer == answer
        assert found.parts[0].difference.error == pytest.approx(error / math.sqrt(len(DOMAINS)))

    def test_the_first_round_of_a_domain_that_trained_anew_is_no_later_one(self):
        inputs = without_losses()

        def anew(record):
            (outcome, *_) = record.rounds
            outcome = dataclasses.replace(outcome, stack=StackId(record.domain, 3))
            return dataclasses.replace(record, rounds=(outcome,))

        found = verdict(
            build_report(dataclasses.replace(inputs, records=tuple(map(anew, inputs.records)))), "Later rounds"
        )
        assert (found.answer, found.parts) == ("not measured", ())

    @pytest.mark.parametrize(
        ("shift", "mixed", "foreign"), [(-0.5, "holds", "holds"), (0.005, "fails", "holds"), (0.2, "fails", "fails")]
    )
    def test_mixed_and_foreign_rows(self, shift, mixed, foreign):
        losses = make_losses({"chat": True, "mixed:dose": True, "foreign:news": True}, routed=shift, noise=1e-3)
        report = build_report(make_inputs(("chat",), losses=losses))
        assert verdict(report, "Mixed rows").answer == mixed
        assert verdict(report, "foreign").answer == foreign

    def test_a_statement_without_its_numbers_is_not_measured(self):
        report = build_report(make_inputs(overlap={}))
        assert verdict(report, "Mixed rows").answer == "not measured"
        assert verdict(report, "disjoint").answer == "not measured"
        single = build_report(make_inputs(losses=make_losses(OWNED, rows_each=1)))
        assert verdict(single, "own stacks").answer == "not measured"  # one row has no interval
        assert single.loss["base"]["chat"] is not None


class TestServed:
    """The first finding: this bundle against the champion, on the rows that both measured."""

    def against(self, shift: float, noise: float = 0.0) -> Finding:
        former = make_losses({"chat": True, "mixed:dose": True, "foreign:news": True}, noise=0.0)
        now = dataclasses.replace(
            former,
            nll=former.nll
            | {
                "routed": tuple(
                    nll + (shift + noise * (-1) ** row) * tokens if owner == "mixed:dose" else nll
                    for row, (nll, owner, tokens) in enumerate(
                        zip(former.nll["routed"], former.owners, former.tokens, strict=True)
                    )
                )
            },
        )
        change = served_change(2, now, 1, former)
        return build_report(make_inputs(("chat",), served=change, decision=decide("guarded", change))).findings[0]

    @pytest.mark.parametrize(
        ("shift", "noise", "answer", "alias"),
        [
            (0.0, 0.0, "holds", "champion"),
            (-0.5, 0.0, "holds", "champion"),
            (0.1, 0.0, "fails", "challenger"),
            (0.02, 0.5, "undecided", "champion"),
        ],
    )
    def test_says_group_by_group_who_is_served_worse(self, shift, noise, answer, alias):
        found = self.against(shift, noise)
        assert found.answer == answer
        assert {part.name: part.answer for part in found.parts} == {"chat": "holds", MIXED: answer, FOREIGN: "holds"}
        assert found.detail.startswith(f"72 rows that both measured, of 72 and 72: {alias}, ")

    def test_a_first_bundle_has_nothing_to_be_compared_with(self):
        found = build_report(make_inputs(decision=decide("guarded", None))).findings[0]
        assert (found.answer, found.detail) == ("not measured", "the first bundle")


class TestChecks:
    @given(st.integers(0, 39), st.sampled_from(DOMAINS), st.floats(-1, 1).filter(lambda change: abs(change) > 1e-9))
    def test_drift_is_the_largest_change_of_any_row_and_any_change_is_a_failure(self, row, domain, change):
        inputs = without_losses()
        rows = list(inputs.isolated_row_losses[domain])
        rows[row] += change
        moved = dataclasses.replace(inputs, isolated_row_losses={**inputs.isolated_row_losses, domain: tuple(rows)})
        report = build_report(moved)
        assert report.isolated_drift_max == pytest.approx(abs(change), rel=1e-6)
        assert verdict(report, "No earlier domain moved").answer == "fails"
        assert domain in verdict(report, "No earlier domain moved").detail

    def test_nothing_moved_means_exactly_zero(self):
        report = build_report(without_losses())
        assert report.isolated_drift_max == 0.0
        assert verdict(report, "No earlier domain moved").answer == "holds"

    def test_a_row_that_became_nan_is_a_failure_and_not_a_number(self):
        inputs = without_losses()
        rows = (math.nan, *inputs.isolated_row_losses["code"][1:])
        report = build_report(dataclasses.replace(inputs, isolated_row_losses={"code": rows}))
        assert report.isolated_drift_max is None
        assert verdict(report, "No earlier domain moved").answer == "fails"

    def test_other_rows_than_at_commit_are_refused(self):
        with pytest.raises(DataError, match="chat closed with 40 validation rows and is now scored on 3"):
            build_report(without_losses(isolated_row_losses={"chat": (1.0, 2.0, 3.0)}))

    def test_shared_directions_and_a_frozen_loss_are_failures(self):
        inputs = without_losses(overlap={a: dict.fromkeys(DOMAINS, 0.2) for a in DOMAINS})
        worse = dataclasses.replace(inputs.records[0].rounds[0], gain=-0.1, committed=True)
        records = (dataclasses.replace(inputs.records[0], rounds=(worse,)), *inputs.records[1:])
        report = build_report(dataclasses.replace(inputs, records=records))
        assert verdict(report, "disjoint").answer == "fails"
        assert verdict(report, "worse than its parent").answer == "fails"

    def test_a_delta_that_leaks_into_an_earlier_claim_is_a_failure(self):
        inputs = without_losses()
        leak = {"chat": Spread(0.001, 0.02, "model.layers.3.mlp.up_proj")}
        records = (inputs.records[0], dataclasses.replace(inputs.records[1], overlap_claimed=leak), *inputs.records[2:])
        check = verdict(build_report(dataclasses.replace(inputs, records=records)), "disjoint")
        assert check.answer == "fails"
        assert "0.02 of the energy of code lies in what chat claimed" in check.detail


class TestEnergies:
    def test_of_every_two_domains_both_ways_are_there_once_from_the_later_record(self):
        inputs = without_losses()
        report = build_report(inputs)
        records = {record.domain: record for record in inputs.records}
        for a, earlier in enumerate(DOMAINS):
            for later in DOMAINS[a + 1 :]:
                assert report.foreign[later][earlier] == records[later].foreign[earlier]
                assert report.foreign[earlier][later] == records[later].abroad[earlier]
                assert report.delta_overlap[later][earlier] == records[later].overlap[earlier]
                assert earlier not in report.delta_overlap or later not in report.delta_overlap[earlier]

    def test_held_is_told_by_side(self):
        inputs = without_losses()
        both = {"output": Spread(0.9, 0.5, "a"), "input": Spread(0.99, 0.8, "b")}
        records = (dataclasses.replace(inputs.records[0], energy_held=both), *inputs.records[1:])
        assert build_report(dataclasses.replace(inputs, records=records)).energy_held["chat"] == both


def test_what_is_not_finite_becomes_none_so_that_the_report_can_be_written():
    inputs = without_losses()
    diverged = dataclasses.replace(
        inputs.records[0].rounds[0], val_after=math.nan, gain=math.nan, gain_error=math.inf, committed=False
    )
    records = (dataclasses.replace(inputs.records[0], rounds=(diverged,)), *inputs.records[1:])
    report = build_report(dataclasses.replace(inputs, records=records, timing={"training": math.inf}))
    assert report.stacks[0].val_after is None
    assert report.stacks[0].gain is None
    assert report.timing["training"] is None
    assert report.to_json()


def test_the_sweep_names_the_best_combination_on_shared_rows():
    best = build_report(make_inputs(("chat", "code"))).sweep.best["chat"]
    assert best.domains[0] == "chat"
    assert best.gain > 0.4


@pytest.mark.parametrize(
    "inputs",
    [
        make_inputs(("chat",)),
        make_inputs(committed=False),
        make_inputs(null_space=False),
        make_inputs(records=(), isolated_row_losses={}, losses=make_losses({}), histories={}, outcomes=(), gates={}),
    ],
    ids=["one domain", "no stack committed", "null space off", "nothing closed"],
)
def test_missing_pieces_are_a_report_all_the_same(inputs):
    report = build_report(inputs)
    assert report.to_json()
    assert report.domains == inputs.domains


def test_gains_are_the_same_from_one_table_and_from_many():
    outcomes = make_outcomes(DOMAINS, random.Random(0))
    whole = mask_gains([outcomes], DOMAINS)
    line = 2 ** len(DOMAINS)
    parts = [outcomes.slice(at, 3 * line) for at in range(0, len(outcomes), 3 * line)]
    split = mask_gains(parts, DOMAINS)
    assert (split.owners, split.masks) == (whole.owners, whole.masks)
    np.testing.assert_allclose(split.gain_WM, whole.gain_WM)
    rows = outcomes.to_pylist()
    base = {row["row_id"]: row["nll"] for row in rows if row["mask"] == 0}
    own = [row for row in rows if row["domain"] == DOMAINS[1] and row["mask"] == 2]
    saved = sum(base[row["row_id"]] - row["nll"] for row in own) / sum(row["tokens"] for row in own)
    assert whole.gain_WM[1, whole.masks.index(2)] == pytest.approx(saved)
    without_base = outcomes.filter(pc.not_equal(outcomes["mask"], 0))
    assert mask_gains([without_base], DOMAINS).masks == ()
