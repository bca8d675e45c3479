"""The claims a campaign makes, each decided by the numbers of its report, failures stated as plainly as successes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Two losses closer than this are the same: float32 sums over a validation set differ by more than rounding below it.
LOSS_TOLERANCE = 1e-6
# Squared cosine below which two subspaces count as disjoint. bfloat16 storage alone leaves about 1e-5.
OVERLAP_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """``holds`` is None where the campaign did not measure what the claim needs; ``detail`` then says what."""

    claim: str
    holds: bool | None
    detail: str


def judge(report: dict[str, Any]) -> list[Verdict]:
    """Every claim, in the order a reader asks for them."""
    return [check(report) for check in CHECKS]


def own_stacks_help(report: dict[str, Any]) -> Verdict:
    claim = "Every domain's own stacks lower its loss"
    base, isolated = report["loss"]["base"], report["loss"]["isolated"]
    if not any(_both(base[d], isolated[d]) for d in report["domains"]):
        return Verdict(claim, None, "no domain was evaluated with its own stacks")
    lowered, not_lowered = [], []
    for domain in report["domains"]:
        if not _both(base[domain], isolated[domain]):
            not_lowered.append(f"{domain} (not measured)")
        elif base[domain] - isolated[domain] > LOSS_TOLERANCE:
            percent = 100 * (base[domain] - isolated[domain]) / base[domain]
            lowered.append(f"{domain} {_signed(isolated[domain] - base[domain])} (−{percent:.0f} %)")
        else:
            reason = _signed(isolated[domain] - base[domain]) if _committed(report, domain) else "no stack committed"
            not_lowered.append(f"{domain} ({reason})")
    detail = "; ".join(
        ([f"not lowered: {', '.join(not_lowered)}"] if not_lowered else [])
        + ([f"nats against the base: {', '.join(lowered)}"] if lowered else [])
    )
    return Verdict(claim, not not_lowered, detail)


def nothing_moved(report: dict[str, Any]) -> Verdict:
    claim = "No earlier domain moved when later ones were trained"
    rows, drift = report["isolated_drift_rows"], report["isolated_drift_max"]
    if not rows:
        return Verdict(claim, None, "no domain's rows were scored again at the end")
    if drift is None:
        return Verdict(claim, False, f"rows among {rows} gave a loss before and NaN now, or the reverse")
    where = "" if drift == 0 else f", on {max(report['isolated_drift'], key=lambda d: report['isolated_drift'][d])}"
    exact = "0, to the bit" if drift == 0 else f"{drift:.3g} nats"
    return Verdict(claim, drift == 0, f"largest change of a row's isolated loss: {exact}{where}, over {rows} rows")


def later_rounds_help(report: dict[str, Any]) -> Verdict:
    claim = "A second round of residual boosting helped somewhere"
    later = [row for row in report["stacks"] if row["round"] > 1]
    if not later:
        return Verdict(claim, None, "no domain ran a second round")
    kept = [f"{_name(row)} {_change(row)}" for row in later if row["committed"]]
    rejected = [f"{_name(row)} {_change(row)}" for row in later if not row["committed"]]
    parts = [f"{len(kept)} of {len(later)} later rounds committed" + (f": {', '.join(kept)}" if kept else "")]
    parts += [f"rejected: {', '.join(rejected)}"] if rejected else []
    return Verdict(claim, bool(kept), "; ".join(parts))


def frozen_beats_parent(report: dict[str, Any]) -> Verdict:
    claim = "Nothing worse than its parent was frozen"
    committed = [row for row in report["stacks"] if row["committed"]]
    if not committed:
        return Verdict(claim, None, "no stack was committed")
    worse = [row for row in committed if not _both(row["val_before"], row["val_after"]) or _gain(row) <= 0]
    turned_away = sum(not row["committed"] for row in report["stacks"])
    detail = f"{len(committed)} rounds committed, {turned_away} turned away"
    if worse:
        detail = f"{', '.join(f'{_name(row)} {_change(row)}' for row in worse)}; {detail}"
    return Verdict(claim, not worse, detail)


def claims_are_disjoint(report: dict[str, Any]) -> Verdict:
    claim = "Domains claim disjoint directions"
    overlap = report["overlap"]
    pairs = [(overlap[a].get(b), f"{a} and {b}") for a in overlap for b in overlap if a < b]
    pairs = [pair for pair in pairs if pair[0] is not None]
    if not pairs:
        return Verdict(claim, None, "fewer than two domains claimed directions")
    largest, where = max(pairs)
    detail = f"largest mean squared cosine {largest:.2g}, between {where} (1 is the same subspace)"
    return Verdict(claim, largest <= OVERLAP_TOLERANCE, detail)


def routing_beats_all_on(report: dict[str, Any]) -> Verdict:
    return _routed_no_worse(report, "ungated", "Routed is no worse than all stacks ungated")


def routing_beats_base(report: dict[str, Any]) -> Verdict:
    return _routed_no_worse(report, "base", "Routed is no worse than the base")


def routing_beats_best_single(report: dict[str, Any]) -> Verdict:
    claim = "Routed is no worse than the best single domain"
    return _regret_against(report, "best_single_regret", claim, slack=LOSS_TOLERANCE)


def routing_beats_labels(report: dict[str, Any]) -> Verdict:
    return _regret_against(report, "label_regret", "The meta-router beats routing by label", slack=-LOSS_TOLERANCE)


CHECKS: tuple[Callable[[dict[str, Any]], Verdict], ...] = (
    own_stacks_help,
    nothing_moved,
    later_rounds_help,
    frozen_beats_parent,
    claims_are_disjoint,
    routing_beats_all_on,
    routing_beats_base,
    routing_beats_best_single,
    routing_beats_labels,
)


def _routed_no_worse(report: dict[str, Any], other: str, claim: str) -> Verdict:
    """Means over the domains that were measured both ways, on the same validation rows."""
    routed, rival = report["loss"]["routed"], report["loss"][other]
    shared = [domain for domain in report["domains"] if _both(routed[domain], rival[domain])]
    if not shared:
        return Verdict(claim, None, f"routed and {other} losses were not both measured")
    routed_mean = sum(routed[d] for d in shared) / len(shared)
    rival_mean = sum(rival[d] for d in shared) / len(shared)
    worse = [f"{d} {_signed(routed[d] - rival[d])}" for d in shared if routed[d] > rival[d] + LOSS_TOLERANCE]
    detail = f"mean {routed_mean:.3f} against {rival_mean:.3f}"
    detail += f"; worse on {', '.join(worse)}" if worse else "; on no domain worse"
    return Verdict(claim, routed_mean <= rival_mean + LOSS_TOLERANCE, detail)


def _regret_against(report: dict[str, Any], rival: str, claim: str, slack: float) -> Verdict:
    """Regrets share rows and oracle, so their difference is the difference in loss on held-out rows."""
    regret, other = report["router"]["regret"], report["router"][rival]
    if not _both(regret, other):
        return Verdict(claim, None, f"regret and {rival} were not both measured")
    return Verdict(claim, regret <= other + slack, f"regret {regret:.4f} against {other:.4f} nats on held-out rows")


def _both(*values: float | None) -> bool:
    return all(value is not None for value in values)


def _committed(report: dict[str, Any], domain: str) -> bool:
    return any(row["committed"] for row in report["stacks"] if row["domain"] == domain)


def _name(row: dict[str, Any]) -> str:
    return f"{row['domain']} r{row['round']}"


def _gain(row: dict[str, Any]) -> float:
    return row["val_before"] - row["val_after"]


def _change(row: dict[str, Any]) -> str:
    return _signed(-_gain(row)) if _both(row["val_before"], row["val_after"]) else "(not finite)"


def _signed(nats: float) -> str:
    return f"{nats:+.3f}".replace("-", "−")
