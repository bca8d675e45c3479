"""From what was measured to the report: finite numbers, findings with their intervals, checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from bs_cluster.errors import DataError
from bs_cluster.records import MODES, DomainRecord, RoundOutcome, Spread
from bs_cluster.report.accuracy import answers_report, routed_is_right_more_often
from bs_cluster.report.checks import claims_are_disjoint, frozen_beats_parent, logits_are_equal, nothing_moved
from bs_cluster.report.compare import Compared
from bs_cluster.report.findings import find, served_no_worse
from bs_cluster.report.gains import mask_gains, mask_names
from bs_cluster.report.inputs import ReportInputs
from bs_cluster.report.record import (
    ALL,
    EVERY,
    FOREIGN,
    MIXED,
    POLICIES,
    BestCombination,
    Report,
    RoundReport,
    RouterReport,
    SweepReport,
)

GROUPS = (ALL, MIXED, FOREIGN)


def build_report(inputs: ReportInputs) -> Report:
    """The campaign's report, without figures.

    Raises:
        DataError: a domain's rows now are not the rows it closed with, so drift has no meaning.
    """
    records = [record for domain in inputs.domains if (record := inputs.record(domain))]
    compared = Compared(inputs.losses, inputs.domains)
    rounds = tuple(_round(outcome) for record in records for outcome in record.rounds)
    drift = _drift(inputs)
    # One row that a loss before and NaN now cannot be said as a number.
    largest = math.nan if any(map(math.isnan, drift.values())) else max(drift.values(), default=math.nan)
    drift_rows = sum(len(inputs.isolated_row_losses[domain]) for domain in drift)
    losses = {mode: {o: compared.loss(mode, o) for o in (*inputs.owners, *GROUPS)} for mode in MODES}
    router = _router(inputs, compared)
    by_domain = {domain: _number(value) for domain, value in drift.items()}
    overlap = {a: _numbers(row) for a, row in inputs.overlap.items()}
    claim_overlap = {record.domain: dict(record.overlap_claimed) for record in records}
    answers = answers_report(inputs)
    findings = (
        served_no_worse(inputs.served, inputs.decision),
        *find(compared, inputs.domains, rounds),
        routed_is_right_more_often(answers),
    )
    checks = (
        nothing_moved(_number(largest), by_domain, drift_rows),
        logits_are_equal(inputs.proofs),
        frozen_beats_parent(rounds),
        claims_are_disjoint(overlap, claim_overlap),
    )
    report = Report(
        campaign=inputs.campaign,
        domains=inputs.domains,
        owners=inputs.owners,
        base=inputs.base,
        findings=findings,
        checks=checks,
        rows={owner: compared.rows(owner) for owner in (*inputs.owners, *GROUPS)},
        rows_note=inputs.rows_note,
        loss={mode: {owner: compared.mean(mode, owner) for owner in inputs.owners} for mode in MODES},
        losses=losses,
        router=router,
        answers=answers,
        gates={owner: _numbers(row) for owner, row in inputs.gates.items()},
        stacks=rounds,
        validation_rows={record.domain: len(record.row_losses) for record in records},
        validation_base={record.domain: _number(record.base_loss) for record in records},
        isolated_at_commit={record.domain: _number(record.isolated) for record in records},
        isolated_drift_max=_number(largest),
        isolated_drift=by_domain,
        isolated_drift_rows=drift_rows,
        matrix={record.domain: {d: _numbers(row) for d, row in record.matrix.items()} for record in records},
        overlap=overlap,
        energy_held={record.domain: dict(record.energy_held) for record in records},
        delta_overlap={record.domain: dict(record.overlap) for record in records},
        claim_overlap=claim_overlap,
        foreign=_foreign(records),
        capacity={record.domain: _numbers(record.capacity) for record in records},
        basis_rank_mean={record.domain: _number(record.basis_rank_mean) for record in records},
        sweep=_sweep(inputs),
        timing=_numbers(inputs.timing),
        data_counts={domain: dict(counts) for domain, counts in inputs.data_counts.items()},
        environment=dict(inputs.environment),
        config=inputs.config_yaml,
        key_metrics={},
        aligned_answers={name: tuple(found) for name, found in inputs.aligned_answers.items() if found},
    )
    return dataclasses.replace(report, key_metrics=key_metrics(report))


def key_metrics(report: Report) -> dict[str, float]:
    """The few numbers by which campaigns are compared side by side, each under one name; all on the sweep rows."""
    found: dict[str, float | None] = {}
    for mode in ("base", "isolated", "ungated", "routed", "oracle"):
        total = report.losses[mode][ALL]
        found[f"loss/{mode}"] = total.mean if total else None
    found |= {f"loss/routed/{owner}": report.loss["routed"][owner] for owner in report.owners}
    for mode in ("base", "routed"):
        right = report.answers.right[mode].get(EVERY)
        found[f"accuracy/{mode}"] = right.mean if right else None
    router = report.router
    found |= {
        "regret/router": router.regret,
        "regret/label": router.label_regret,
        "regret/best_single": router.best_single_regret,
        "router_accuracy": router.accuracy,
        "isolated_drift_max": report.isolated_drift_max,
        "findings_that_hold": float(report.count("holds")),
        "findings_that_fail": float(report.count("fails")),
        "findings_undecided": float(report.count("undecided")),
        "sweep_rows_per_s": report.sweep.rows_per_s,
        "seconds": report.timing.get("total"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _round(outcome: RoundOutcome) -> RoundReport:
    return RoundReport(
        domain=outcome.stack.domain,
        round=outcome.stack.round,
        val_before=_number(outcome.val_before),
        val_after=_number(outcome.val_after),
        gain=_number(outcome.gain),
        gain_error=_number(outcome.gain_error),
        rows=outcome.rows,
        committed=outcome.committed,
        manifest=outcome.manifest,
        steps=outcome.steps,
        restores=outcome.restores,
        seconds=_number(outcome.seconds),
        reason=outcome.reason,
        objective=outcome.objective,
    )


def _router(inputs: ReportInputs, compared: Compared) -> RouterReport:
    regrets = {
        mode: {owner: compared.difference(mode, "oracle", owner) for owner in (*inputs.owners, *GROUPS)}
        for mode in POLICIES
        if mode in inputs.losses.nll
    }

    def regret(mode: str) -> float | None:
        found = compared.mean(mode, ALL), compared.mean("oracle", ALL)
        return None if found[0] is None or found[1] is None else found[0] - found[1]

    return RouterReport(
        rows=compared.rows(ALL),
        regret=regret("routed"),
        label_regret=regret("label"),
        all_on_regret=regret("ungated"),
        base_regret=regret("base"),
        best_single_regret=regret("best_single"),
        accuracy=_number(inputs.router.accuracy),
        best_single=inputs.router.best_single,
        notes=inputs.router.notes,
        regrets=regrets,
    )


def _drift(inputs: ReportInputs) -> dict[str, float]:
    """How far any validation row's isolated loss moved after its domain closed, the largest by domain, in nats.

    NaN on both sides is a row that cannot be scored, not a drift; on one side it is one, and the domain's is NaN.
    """
    by_domain: dict[str, float] = {}
    for domain, now in inputs.isolated_row_losses.items():
        record = inputs.record(domain)
        if record is not None and record.row_losses:
            by_domain[domain] = _largest_change(record, now)
    return by_domain


def _largest_change(record: DomainRecord, now: tuple[float, ...]) -> float:
    then = record.row_losses
    if len(then) != len(now):
        raise DataError(
            f"{record.domain} closed with {len(then)} validation rows and is now scored on {len(now)}; "
            "score the same rows (the record's data_fingerprint names them)"
        )
    changes = [
        0.0 if math.isnan(before) and math.isnan(after) else abs(after - before)
        for before, after in zip(then, now, strict=True)
    ]
    return math.nan if any(math.isnan(change) for change in changes) else max(changes)


def _foreign(records: Sequence[DomainRecord]) -> dict[str, dict[str, Spread]]:
    """Of every two closed domains, by whose tokens and then by whose stacks: the later one's record holds both ways."""
    found: dict[str, dict[str, Spread]] = {record.domain: dict(record.foreign) for record in records}
    for record in records:
        for earlier, spread in record.abroad.items():
            found[earlier][record.domain] = spread
    return found


def _sweep(inputs: ReportInputs) -> SweepReport:
    """The sweep's size and speed, and the combination that served each owner's rows best on average."""
    gains = mask_gains(inputs.outcomes, inputs.owners)
    best = {}
    for owner in inputs.owners:
        if found := gains.best(owner):
            mask, gain = found
            best[owner] = BestCombination(mask, tuple(mask_names(mask, inputs.domains)), gain)
    return dataclasses.replace(inputs.sweep, best=best)


def _number(value: float | None) -> float | None:
    """``value`` as Python's own float; None where it is not finite, which JSON cannot say."""
    return float(value) if value is not None and math.isfinite(value) else None


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}
