"""From what was measured to the report: one plain dict of finite numbers, and the verdicts they support."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from bs_cluster.errors import DataError
from bs_cluster.records import DomainRecord, canonical_json
from bs_cluster.report.gains import mask_gains, mask_names
from bs_cluster.report.inputs import MODES, ReportInputs
from bs_cluster.report.verdicts import judge

ROUTER_KEYS = ("regret", "label_regret", "all_on_regret", "base_regret", "best_single_regret", "accuracy")


def build_report(inputs: ReportInputs) -> dict[str, Any]:
    """The campaign's report. Every number is finite; one that was not measured, or came out as NaN, is None.

    ``verdicts`` are claims that the numbers decide, ``not_measured`` the claims that they do not reach.

    Raises:
        DataError: a domain's rows now are not the rows it closed with, so drift has no meaning.
    """
    records = [record for domain in inputs.domains if (record := inputs.record(domain))]
    report = _finite(
        {
            "campaign": inputs.campaign,
            "domains": inputs.domains,
            "base": inputs.base.to_dict(),
            "stacks": [_round(outcome) for record in records for outcome in record.rounds],
            "loss": {mode: {d: inputs.losses.get(mode, {}).get(d) for d in inputs.domains} for mode in MODES},
            "loss_notes": inputs.loss_notes,
            "isolated_at_commit": {record.domain: record.isolated for record in records},
            **_drift(inputs),
            "matrix": {record.domain: record.matrix for record in records},
            "overlap": inputs.overlap,
            "capacity": {record.domain: record.capacity for record in records},
            "basis_rank_mean": {record.domain: record.basis_rank_mean for record in records},
            "router": {**dict.fromkeys(ROUTER_KEYS), **inputs.router},
            "gates": inputs.gates,
            "sweep": _sweep(inputs),
            "timing": inputs.timing,
            "data_counts": inputs.data_counts,
            "environment": inputs.environment,
            "config": inputs.config_yaml,
        }
    )
    verdicts = judge(report)
    report["verdicts"] = [
        {"claim": v.claim, "holds": v.holds, "detail": v.detail} for v in verdicts if v.holds is not None
    ]
    report["not_measured"] = [{"claim": v.claim, "detail": v.detail} for v in verdicts if v.holds is None]
    canonical_json(report)  # our own invariant: what leaves here can be written
    return report


def _round(outcome) -> dict[str, Any]:
    row = outcome.to_dict()
    identity = row.pop("stack")
    return {"domain": identity["domain"], "round": identity["round"], **row}


def _drift(inputs: ReportInputs) -> dict[str, Any]:
    """How far any validation row's isolated loss moved after its domain closed, in nats: the largest, and by domain.

    NaN on both sides is a row that cannot be scored, not a drift; on one side it is one, and no number can say it.
    """
    by_domain: dict[str, float] = {}
    for domain, now in inputs.isolated_row_losses.items():
        record = inputs.record(domain)
        if record is not None and record.row_losses:
            by_domain[domain] = _largest_change(record, now)
    rows = sum(len(inputs.isolated_row_losses[domain]) for domain in by_domain)
    if any(math.isnan(change) for change in by_domain.values()):
        largest = math.nan
    else:
        largest = max(by_domain.values(), default=None)
    return {"isolated_drift_max": largest, "isolated_drift": by_domain, "isolated_drift_rows": rows}


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


def _sweep(inputs: ReportInputs) -> dict[str, Any]:
    """The sweep's size and speed, and the combination that served each domain's rows best on average."""
    gains = mask_gains(inputs.outcomes, inputs.domains)
    best = {}
    for domain in inputs.domains:
        if found := gains.best(domain):
            mask, gain = found
            best[domain] = {"mask": mask, "domains": mask_names(mask, inputs.domains), "gain": gain}
    return {**dict.fromkeys(("rows", "combinations", "rows_per_s")), **inputs.sweep, "best": best}


def _finite(value: Any) -> Any:
    """JSON-ready values: numpy scalars become Python's, tuples lists, and what is not finite None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"a report cannot hold {value!r} ({type(value).__name__}); pass numbers, text, lists and dicts")
