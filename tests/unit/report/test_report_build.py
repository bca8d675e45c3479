"""What the report says follows from the numbers it was given, and nothing else."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.report.campaign import DOMAINS, make_inputs

from bs_cluster.errors import DataError
from bs_cluster.records import canonical_json
from bs_cluster.report.build import build_report
from bs_cluster.report.inputs import MODES


def verdict(report, words):
    found = [v for v in report["verdicts"] if words in v["claim"]]
    assert len(found) == 1, [v["claim"] for v in report["verdicts"]]
    return found[0]


def test_has_the_keys_the_design_requires():
    report = build_report(make_inputs())
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
    assert report["overlap"]["chat"]["chat"] == 1.0
    assert {"regret", "label_regret", "all_on_regret", "accuracy"} <= set(report["router"])
    assert {"rows", "combinations", "rows_per_s"} <= set(report["sweep"])


@given(
    st.integers(0, 39),
    st.sampled_from(DOMAINS),
    st.floats(-1, 1).filter(lambda change: abs(change) > 1e-9),
)
def test_drift_is_the_largest_change_of_any_row(row, domain, change):
    inputs = make_inputs()
    rows = list(inputs.isolated_row_losses[domain])
    rows[row] += change
    moved = dataclasses.replace(inputs, isolated_row_losses={**inputs.isolated_row_losses, domain: tuple(rows)})
    report = build_report(moved)
    assert report["isolated_drift_max"] == pytest.approx(abs(change), rel=1e-6)
    assert not verdict(report, "No earlier domain moved")["holds"]
    assert domain in verdict(report, "No earlier domain moved")["detail"]


def test_nothing_moved_means_exactly_zero():
    report = build_report(make_inputs())
    assert report["isolated_drift_max"] == 0.0
    assert verdict(report, "No earlier domain moved")["holds"]


def test_a_row_that_became_nan_is_a_failure_and_not_a_number():
    inputs = make_inputs()
    rows = (math.nan, *inputs.isolated_row_losses["code"][1:])
    report = build_report(dataclasses.replace(inputs, isolated_row_losses={"code": rows}))
    assert report["isolated_drift_max"] is None
    assert not verdict(report, "No earlier domain moved")["holds"]


def test_other_rows_than_at_commit_are_refused():
    inputs = make_inputs()
    with pytest.raises(DataError, match="chat closed with 40 validation rows and is now scored on 3"):
        build_report(dataclasses.replace(inputs, isolated_row_losses={"chat": (1.0, 2.0, 3.0)}))


@pytest.mark.parametrize(
    ("claim", "flipped"),
    [
        ("own stacks lower", lambda i: {"losses": _with_loss(i, "isolated", "math", 9.0)}),
        ("no worse than the base", lambda i: {"losses": _with_loss(i, "routed", "math", 9.0)}),
        ("no worse than all stacks", lambda i: {"losses": _with_loss(i, "routed", "math", 9.0)}),
        ("best single domain", lambda i: {"router": {**i.router, "best_single_regret": 0.001}}),
        ("beats routing by label", lambda i: {"router": {**i.router, "label_regret": i.router["regret"]}}),
        ("disjoint", lambda i: {"overlap": {a: dict.fromkeys(DOMAINS, 0.2) for a in DOMAINS}}),
        ("second round", lambda i: {"records": tuple(_rejecting_later_rounds(r) for r in i.records)}),
        ("worse than its parent was frozen", lambda i: {"records": tuple(_worse(r) for r in i.records)}),
    ],
)
def test_a_verdict_flips_when_its_numbers_do(claim, flipped):
    inputs = make_inputs()
    assert verdict(build_report(inputs), claim)["holds"]
    assert not verdict(build_report(dataclasses.replace(inputs, **flipped(inputs))), claim)["holds"]


def test_a_claim_without_its_numbers_is_reported_as_not_measured():
    report = build_report(make_inputs(router={}, overlap={}))
    silent = " ".join(gap["claim"] for gap in report["not_measured"])
    assert "label" in silent
    assert "disjoint" in silent
    assert all(isinstance(v["holds"], bool) for v in report["verdicts"])


def test_what_is_not_finite_becomes_none_so_that_the_report_is_canonical_json():
    inputs = make_inputs()
    diverged = dataclasses.replace(inputs.records[0].rounds[0], val_after=math.nan, committed=False, manifest=None)
    records = (dataclasses.replace(inputs.records[0], rounds=(diverged,)), *inputs.records[1:])
    report = build_report(dataclasses.replace(inputs, records=records, timing={"training": math.inf}))
    assert report["stacks"][0]["val_after"] is None
    assert report["timing"]["training"] is None
    assert json.loads(canonical_json(report)) == report


def test_the_sweep_names_the_best_combination_on_shared_rows():
    report = build_report(make_inputs(("chat", "code")))
    assert report["sweep"]["best"]["chat"]["domains"][0] == "chat"
    assert report["sweep"]["best"]["chat"]["gain"] > 0.4


@pytest.mark.parametrize(
    "inputs",
    [
        make_inputs(("chat",)),
        make_inputs(committed=False),
        make_inputs(null_space=False),
        make_inputs(records=(), isolated_row_losses={}, losses={}, histories={}, outcomes=None, sweep={}, gates={}),
    ],
    ids=["one domain", "no stack committed", "null space off", "nothing closed"],
)
def test_missing_pieces_are_a_report_all_the_same(inputs):
    report = build_report(inputs)
    assert canonical_json(report)
    assert report["domains"] == list(inputs.domains)


def _with_loss(inputs, mode, domain, value):
    return {**inputs.losses, mode: {**inputs.losses[mode], domain: value}}


def _rejecting_later_rounds(record):
    rounds = tuple(dataclasses.replace(r, committed=r.committed and r.stack.round == 1) for r in record.rounds)
    return dataclasses.replace(record, rounds=rounds)


def _worse(record):
    first = dataclasses.replace(record.rounds[0], val_after=record.rounds[0].val_before + 0.1, committed=True)
    return dataclasses.replace(record, rounds=(first, *record.rounds[1:]))
