"""How page and terminal write numbers: a real minus sign, three digits, a dash for what was not measured."""

from __future__ import annotations

from bs_cluster.estimates import Estimate
from bs_cluster.records import Spread
from bs_cluster.report.record import ALL, Answer, Check, Finding, Report

NOT_MEASURED = "–"
MARKS: dict[Answer, str] = {"holds": "✓", "fails": "✗", "undecided": "?", "not measured": "–"}

# How a domain's rows can be answered, in the order of the tables. The oracle picks a subset per row in hindsight: a
# bound, never the best of what one could serve.
TABLE_MODES = ("base", "isolated", "parents", "ungated", "best_single", "routed", "oracle")
ORACLE = "each row's best combination of domains on or off, in hindsight; gates between on and off can be better still"
SERVABLE = tuple(mode for mode in TABLE_MODES if mode != "oracle")


def loss(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:+z.3f}".replace("-", "−")


def interval(value: Estimate | None, form: str = "+.3f") -> str:
    """The 95 % interval, ``[−0.040, +0.012]``."""
    return NOT_MEASURED if value is None else f"[{value.low:{form}}, {value.high:{form}}]".replace("-", "−")


def level(value: float | None, objective: str) -> str:
    """A round's number before or after: a loss, or of a round of alignment the share of prompts that went right."""
    return loss(value) if objective == "sft" else percent(value)


def percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def tally(report: Report) -> str:
    """``6 findings hold, 1 fails, 1 is undecided; 3 of 3 checks hold``."""
    hold, fail, open_ = (report.count(answer) for answer in ("holds", "fails", "undecided"))
    parts = [f"{hold} finding{'s' if hold != 1 else ''} hold{'s' if hold == 1 else ''}"]
    parts += [f"{fail} fail{'s' if fail == 1 else ''}"] if fail else []
    parts += [f"{open_} {'is' if open_ == 1 else 'are'} undecided"] if open_ else []
    checks = [check for check in report.checks if check.answer != "not measured"]
    held = sum(check.answer == "holds" for check in checks)
    return f"{', '.join(parts)}; {held} of {len(checks)} checks hold"


def best_servable(report: Report, owner: str) -> float | None:
    """The lowest loss of ``owner``'s rows among the modes that can be served."""
    return min((v for mode in SERVABLE if (v := report.loss[mode][owner]) is not None), default=None)


def held(spread: Spread | None) -> str:
    """``94.6 % (77.0 %)``: the mean over sites, and the worst site."""
    return NOT_MEASURED if spread is None else f"{percent(spread.mean)} ({percent(spread.worst)})"


def loudest(report: Report) -> tuple[str, str, Spread] | None:
    """On whose tokens whose stacks write most against the own ones, in the mean over sites."""
    pairs = [(on, of, spread) for on, row in report.foreign.items() for of, spread in row.items()]
    return max(pairs, key=lambda pair: pair[2].mean, default=None)


def ungated(report: Report) -> str | None:
    """What happens where all stacks fire: how loudly, and where they write. None without two domains with stacks."""
    loud = loudest(report)
    if loud is None:
        return None
    on, of, most = loud
    means = [spread.mean for row in report.foreign.values() for spread in row.values()]
    both = [report.losses[mode][ALL] for mode in ("ungated", "isolated")]
    losses = [loss(estimate.mean) for estimate in both if estimate]
    told = f"loss {losses[0]}, {losses[1]} with the own stacks alone; " if len(losses) == 2 else ""
    told += (
        f"on a domain's tokens another one's stacks write {percent(sum(means) / len(means))} of the own ones' energy, "
        f"{of} on {on} {percent(most.mean)}"
    )
    crossing = [spread for row in report.delta_overlap.values() for spread in row.values()]
    if crossing:
        mean = sum(spread.mean for spread in crossing) / len(crossing)
        told += f"; {percent(mean)} of a later delta lies where an earlier one writes"
    return told


def unasked_rows(report: Report) -> str:
    """``Not asked: 16 rows of chat that nothing can check; 3 rows of math longer than 32 tokens.``, or nothing."""
    told = [
        f"{count} {'row' if count == 1 else 'rows'} of {owner} {why}"
        for owner, reasons in report.answers.unasked.items()
        for why, count in reasons.items()
    ]
    return f"Not asked: {'; '.join(told)}." if told else ""


def unmeasured(report: Report) -> list[Finding | Check]:
    return [item for item in (*report.findings, *report.checks) if item.answer == "not measured"]


def range_of_rows(report: Report) -> str:
    """``16 rows a domain`` or ``12 to 16 rows a domain``, of the validation rows."""
    counts = sorted(set(report.validation_rows.values()))
    return f"{counts[0]} rows a domain" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} rows a domain"
