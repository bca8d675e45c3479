"""What a certificate states follows from its facts, and what a machine cannot judge it leaves open with the reason."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_history import commit_round, domain_record

from bs_cluster.campaign.agreement import Rescored, dependencies, scored_rows, statements
from bs_cluster.certificate import (
    MEAN_TOLERANCE,
    ROW_TOLERANCE,
    Certificate,
    GeneralText,
    Isolated,
    RowsUsed,
    compare_probes,
    logits_statement,
    probe_digest,
    prove,
    state,
    summary,
)
from bs_cluster.errors import IntegrityError
from bs_cluster.estimates import Estimate
from bs_cluster.promotion import GroupChange, ServedChange
from bs_cluster.records import BaseRef, FileEntry, Probe, ProbedRow, RowLoss, StackId, StackRef
from bs_cluster.report.checks import logits_are_equal
from bs_cluster.store import Store

HERE = {"torch": "2.13.0", "device": "a processor, AVX512"}
ELSEWHERE = HERE | {"device": "another, AVX2"}
LOSS = 2.0
NO_GENERAL = GeneralText(0, None, None, None, None, None)


def probe_of(letters="ab", shift=0.0, environment=HERE, ids="pq") -> Probe:
    rows = (ProbedRow(id, letter * 64, LOSS + shift) for id, letter in zip(ids, letters, strict=True))
    return Probe(tuple(rows), environment)


def general(mean: float, low: float, high: float) -> GeneralText:
    one = Estimate(mean, 0.01, low, high, 20)
    return dataclasses.replace(NO_GENERAL, rows=20, served_change=one)


def served(*groups: GroupChange, missing=()) -> ServedChange:
    return ServedChange(2, 1, 20, 30, 20, 0.01, groups, missing)


def change(mean: float, low: float, high: float, worse=False) -> GroupChange:
    return GroupChange("chat", Estimate(mean, 0.01, low, high, 20), 20, worse)


class TestProbes:
    def test_equal_bits_hold_wherever_they_were_computed(self):
        assert compare_probes(probe_of(), probe_of())[0] == "holds"
        assert compare_probes(probe_of(), probe_of(environment=ELSEWHERE))[0] == "holds"

    def test_other_bits_computed_alike_do_not_hold_however_small_the_change(self):
        verdict, why = compare_probes(probe_of(), probe_of("ac", shift=1e-6))
        assert verdict == "does not hold"
        assert "1 of 2 rows differ" in why

    def test_other_bits_on_another_machine_cannot_be_judged_and_it_says_why(self):
        verdict, why = compare_probes(probe_of(), probe_of("ac", 0.003, ELSEWHERE))
        assert verdict == "cannot be judged"
        assert "because device was a processor, AVX512 and is another, AVX2" in why
        assert "losses by at most 0.003 nats" in why

    @pytest.mark.parametrize("environment", [HERE, ELSEWHERE])
    def test_a_loss_that_moved_does_not_hold_on_any_machine(self, environment):
        moved = 1.01 * ROW_TOLERANCE * (1 + LOSS)
        assert compare_probes(probe_of(), probe_of("ac", moved, environment))[0] == "does not hold"
        assert compare_probes(probe_of(), probe_of("ab", moved, environment))[0] == "does not hold"

    def test_other_rows_and_fewer_do_not_hold(self):
        assert compare_probes(probe_of(), probe_of(ids="pr"))[0] == "does not hold"
        assert compare_probes(probe_of(), probe_of("a", ids="p"))[0] == "does not hold"

    def test_a_loss_that_is_none_any_more_does_not_hold(self):
        broken = Probe((ProbedRow("p", "a" * 64, None),), HERE)
        whole = Probe((ProbedRow("p", "a" * 64, 2.0),), HERE)
        assert compare_probes(broken, broken)[0] == "holds"
        assert compare_probes(whole, broken)[0] == "does not hold"

    def test_its_digest_is_of_rows_and_bits_alone(self):
        assert probe_digest(probe_of()) == probe_digest(probe_of(shift=1, environment=ELSEWHERE))
        assert len({probe_digest(p) for p in (probe_of(), probe_of("ba"), probe_of(ids="qp"))}) == 3


class TestProof:
    @pytest.fixture
    def record(self, tmp_path):
        store = Store(str(tmp_path / "store"), "demo")
        commit_round(store, tmp_path / "staged", "chat", 1)
        return domain_record(store, "chat")

    def test_drift_is_the_largest_change_of_a_row_and_losses_weigh_tokens(self, record):
        (one,) = prove([record], {"chat": (2.4, 2.5)}, {"chat": (1, 3)}, {"chat": record.probe})
        assert one.drift == pytest.approx(0.1)
        assert one.loss_at_closing == pytest.approx((2.4 + 3 * 2.6) / 4)
        assert one.loss_now == pytest.approx((2.4 + 3 * 2.5) / 4)
        assert one.at_closing == record.probe

    def test_a_domain_that_was_not_probed_is_not_proved(self, record):
        assert prove([record], {}, {}, {}) == ()

    @pytest.mark.parametrize(
        ("moved", "verdict"),
        [(0.0, "holds"), (MEAN_TOLERANCE / 2, "holds"), (2 * MEAN_TOLERANCE, "does not hold")],
    )
    def test_a_mean_that_moved_is_judged_by_the_tolerance(self, record, moved, verdict):
        now = tuple(loss + moved for loss in record.row_losses)
        proofs = prove([record], {"chat": now}, {"chat": (1, 1)}, {"chat": record.probe})
        found = {one.statement: one.verdict for one in state(proofs, None, NO_GENERAL)}
        assert found["Isolated loss of chat is that of its closing"] == verdict
        assert found["Isolated logits of chat are those of its closing"] == "holds"

    def test_the_reports_check_reads_the_same_digests(self, record):
        for probe, answer in (
            (record.probe, "holds"),
            (Probe((ProbedRow("chat-0", "b" * 64, 2.4),), {"torch": "tiny"}), "fails"),
            (Probe((ProbedRow("chat-0", "b" * 64, 2.4),), {"torch": "other"}), "undecided"),
        ):
            check = logits_are_equal(prove([record], {"chat": (2.4, 2.6)}, {"chat": (1, 1)}, {"chat": probe}))
            assert check.answer == answer
        assert logits_are_equal(()).answer == "not measured"


class TestStatements:
    @pytest.mark.parametrize(
        ("found", "verdict"),
        [
            (None, "cannot be judged"),
            (served(change(-0.1, -0.2, 0.0)), "holds"),
            (served(change(0.0, -0.02, 0.02)), "cannot be judged"),
            (served(change(0.1, 0.05, 0.2, worse=True)), "does not hold"),
            (served(change(-0.1, -0.2, 0.0), missing=("code",)), "cannot be judged"),
            (served(), "cannot be judged"),
            (served(GroupChange("chat", None, 1, False)), "cannot be judged"),
        ],
    )
    def test_of_what_is_served(self, found, verdict):
        assert state((), found, NO_GENERAL)[-2].verdict == verdict

    @pytest.mark.parametrize(
        ("found", "verdict"),
        [
            (NO_GENERAL, "cannot be judged"),
            (general(0.0, -0.02, 0.02), "holds"),
            (general(0.0, -0.2, 0.2), "cannot be judged"),
            (general(0.1, 0.05, 0.2), "does not hold"),
        ],
    )
    def test_of_general_text(self, found, verdict):
        assert state((), None, found)[-1].verdict == verdict

    def test_the_summary_counts_them(self):
        assert summary(state((), None, general(0.0, -0.02, 0.02))) == "2 statements: 1 hold, 1 cannot be judged"


NUMBERS = st.floats(-9, 9)
ESTIMATES = st.none() | st.builds(Estimate, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 99))


@given(
    change=st.none()
    | st.builds(served, st.builds(GroupChange, st.text(), ESTIMATES, st.integers(0, 9), st.booleans())),
    text=st.builds(GeneralText, st.integers(0, 9), ESTIMATES, ESTIMATES, ESTIMATES, ESTIMATES, ESTIMATES),
    environment=st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_it_comes_back_from_its_bytes_as_it_was(change, text, environment):
    certificate = certificate_with(change, text, (proof_of(probe_of(environment=environment)),))
    assert Certificate.from_json(certificate.to_json()) == certificate


@pytest.mark.parametrize("data", [b"no json", b"{}", b"[]"])
def test_what_is_no_certificate_is_refused(data):
    with pytest.raises(IntegrityError):
        Certificate.from_json(data)


def certificate_with(change, text, isolated=()) -> Certificate:
    return Certificate(
        schema_version=1,
        campaign="demo",
        bundle=1,
        base=BaseRef("tiny", "b" * 64, "none"),
        stacks=(StackRef(StackId("chat", 1), "c" * 64),),
        domains=("chat",),
        seed=1,
        config_digest="d" * 64,
        code_version="test",
        files=(FileEntry("losses.parquet", "e" * 64, 3),),
        closings={"chat": "f" * 64},
        rows={"chat": RowsUsed("a" * 64, "b" * 64, 2, 3), "foreign:x": RowsUsed("a" * 64, None, 0, 3)},
        isolated=isolated,
        served=change,
        general=text,
        statements=state(isolated, change, text),
    )


def proof_of(now: Probe) -> Isolated:
    return Isolated("chat", probe_of(), now, 2.0, 2.0, 0.0, 2)


class TestAgreement:
    """A certificate against what came out later."""

    said = certificate_with(None, NO_GENERAL, isolated=(proof_of(probe_of()),))

    def verdicts(self, found: Certificate) -> dict[str, str]:
        return {line.what: line.verdict for line in statements(self.said, found)}

    def test_the_same_agrees(self):
        assert set(self.verdicts(self.said).values()) == {"agrees"}

    def test_bits_that_this_machine_cannot_judge_are_left_open(self):
        elsewhere = proof_of(probe_of("ac", 0.001, ELSEWHERE))
        found = self.verdicts(certificate_with(None, NO_GENERAL, isolated=(elsewhere,)))
        assert found[logits_statement("chat")] == "cannot be compared"
        assert {verdict for what, verdict in found.items() if what != logits_statement("chat")} == {"agrees"}

    def test_a_verdict_that_numbers_do_not_give_differs(self):
        held = certificate_with(None, general(0.0, -0.02, 0.02), isolated=self.said.isolated)
        lines = {line.what: line.verdict for line in statements(held, self.said)}
        assert lines["Rows foreign to every domain are served as by the base"] == "differs"

    def test_a_statement_that_is_left_out_differs(self):
        fewer = dataclasses.replace(self.said, statements=self.said.statements[1:])
        assert [line.verdict for line in statements(fewer, self.said)].count("differs") == 1

    def test_each_thing_it_depends_on_has_its_line(self):
        for name, other in (
            ("seed", 2),
            ("stacks", ()),
            ("closings", {}),
            ("files", ()),
            ("rows", {}),
            ("bundle", 2),
            ("config_digest", "0" * 64),
        ):
            lines = dependencies(dataclasses.replace(self.said, **{name: other}), self.said)
            assert [line.verdict for line in lines].count("differs") == 1, name
        assert {line.verdict for line in dependencies(self.said, self.said)} == {"agrees"}

    def test_rows_are_held_to_a_wide_tolerance_and_their_mean_to_a_narrow_one(self):
        def lines(*moved: float):
            rows = [Rescored("base", "chat", RowLoss(20.0, 10), RowLoss(20.0 + 10 * by, 10)) for by in moved]
            return [line.verdict for line in scored_rows(rows)]

        assert lines(0.1, -0.1) == ["agrees"]
        assert lines(0.16, -0.16) == ["differs"]  # 0.05 of a loss of 2 and one more is 0.15
        assert lines(0.03, 0.03) == ["differs"]
