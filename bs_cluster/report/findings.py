"""What a campaign states of its losses, each statement with the interval that decides it, or fails to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bs_cluster.certificate import FOREIGN_REACH, FOREIGN_SLACK
from bs_cluster.estimates import NORMAL_95, Estimate
from bs_cluster.promotion import Decision, GroupChange, ServedChange
from bs_cluster.report.compare import Compared, at_most, below_zero, measured, together
from bs_cluster.report.record import ALL, FOREIGN, MIXED, Answer, Comparison, Finding, RoundReport, later_rounds

# How much worse than its rival routing may be and still count as no worse, in nats per completion token: on rows that
# have a label. For rows foreign to every domain the certificate says.
LABEL_SLACK = 0.01


def find(compared: Compared, domains: Sequence[str], rounds: Sequence[RoundReport]) -> tuple[Finding, ...]:
    """Every finding, in the order a reader asks for them."""
    return (
        own_stacks_help(compared, domains, rounds),
        later_rounds_help(rounds),
        *([alignment_helps(rounds)] if any(row.aligned for row in rounds) else []),
        routed_beats(compared, "base", "Routed beats the base"),
        routed_beats(compared, "ungated", "Routed beats all stacks on"),
        routed_beats(compared, "best_single", "Routed beats the best single domain"),
        routing_no_worse_than_labels(compared),
        mixed_rows_gain(compared),
        foreign_rows_keep_the_base(compared),
    )


def served_no_worse(change: ServedChange | None, decision: Decision | None) -> Finding:
    """What the promotion rests on: the same rows, served by this bundle and by the champion."""
    if change is None:
        detail = decision.reason if decision else "not compared"
        return Finding("Served no worse than by the champion", "not measured", "", (), detail)
    parts = [Comparison(item.group, item.difference, _served_answer(item, change.tolerance)) for item in change.groups]
    parts += [Comparison(group, None, "not measured") for group in change.missing]
    detail = f"{change.shared} rows that both measured, of {change.rows} and {change.former_rows}"
    return Finding(
        f"Bundle {change.bundle} serves no group worse than bundle {change.against}",
        together([part.answer for part in parts]),
        f"now − then at most {change.tolerance:g}, all of the interval",
        tuple(parts),
        f"{detail}: {decision.alias}, {decision.reason}" if decision else detail,
    )


def _served_answer(item: GroupChange, tolerance: float) -> Answer:
    if item.worse:
        return "fails"
    if item.difference is None:
        return "not measured"
    return "holds" if item.difference.high <= tolerance else "undecided"


def own_stacks_help(compared: Compared, domains: Sequence[str], rounds: Sequence[RoundReport]) -> Finding:
    parts = []
    for domain in domains:
        difference = compared.difference("isolated", "base", domain)
        parts.append(Comparison(domain, difference, below_zero(difference)))
    bare = [d for d in domains if not any(row.committed for row in rounds if row.domain == d)]
    detail = f"no stack committed: {', '.join(bare)}" if bare else ""
    answer = together([part.answer for part in parts])
    return Finding("Every domain's own stacks lower its loss", answer, "isolated − base below 0", tuple(parts), detail)


def later_rounds_help(rounds: Sequence[RoundReport]) -> Finding:
    """Judged by the mean over all later rounds, those turned away too: what was kept was kept for its gain."""
    later = later_rounds(rounds)
    changes = [(row, _change(row)) for row in later]
    known = [change for _, change in changes if change is not None]
    mean = _mean_of(known)
    kept = sum(row.committed for row in later)
    parts = [Comparison("mean of them", mean, below_zero(mean))] if later else []
    parts += [Comparison(row.name, change, below_zero(change)) for row, change in changes]
    detail = f"{kept} of {len(later)} committed; on the rows that decide" if later else "no domain ran a second round"
    return Finding(
        "Later rounds of residual boosting lower the loss further",
        below_zero(mean),
        "change from the parent below 0, mean over all later rounds",
        tuple(parts),
        detail,
    )


def routed_beats(compared: Compared, rival: str, statement: str) -> Finding:
    difference = compared.difference("routed", rival, ALL)
    answer = below_zero(difference)
    return Finding(statement, answer, f"routed − {rival} below 0", (Comparison("", difference, answer),), "")


def routing_no_worse_than_labels(compared: Compared) -> Finding:
    difference = compared.difference("routed", "label", ALL)
    answer = at_most(difference, LABEL_SLACK, LABEL_SLACK)
    better = difference is not None and difference.high < 0
    return Finding(
        "Routed is no worse than routing by label",
        answer,
        f"routed − label at most {LABEL_SLACK}, all of the interval",
        (Comparison("", difference, answer),),
        "better, even" if better else "",
    )


def mixed_rows_gain(compared: Compared) -> Finding:
    """Rows that ask for more than one domain: where routing has something to win."""
    parts = []
    for rival, name in (("base", "against the base"), ("best_single", "against the best single domain")):
        difference = compared.difference("routed", rival, MIXED)
        parts.append(Comparison(name, difference, below_zero(difference)))
    answer = together([part.answer for part in parts])
    detail = "" if compared.rows(MIXED) else "the sweep has no mixed rows"
    return Finding("Mixed rows gain from routing", answer, "routed − rival below 0", tuple(parts), detail)


def foreign_rows_keep_the_base(compared: Compared) -> Finding:
    difference = compared.difference("routed", "base", FOREIGN)
    answer = at_most(difference, FOREIGN_SLACK, FOREIGN_REACH)
    wanted = f"routed − base at most {FOREIGN_SLACK}, the interval's end at most {FOREIGN_REACH}"
    detail = "" if compared.rows(FOREIGN) else "the sweep has no foreign rows"
    part = Comparison("", difference, answer)
    return Finding("Rows foreign to every domain are served as by the base", answer, wanted, (part,), detail)


def alignment_helps(rounds: Sequence[RoundReport]) -> Finding:
    """Those turned away too. What went wrong on held-out prompts after a round, less what did before."""
    aligned = [row for row in rounds if row.aligned]
    parts = []
    for row in aligned:
        known = row.gain is not None and row.gain_error is not None
        fewer = _normal(-(row.gain or 0.0), row.gain_error or 0.0, row.rows) if known else None
        parts.append(Comparison(f"{row.name} ({row.objective})", fewer, below_zero(fewer)))
    return Finding(
        "Rounds of alignment gain what they are for",
        together([part.answer for part in parts]),
        "the share of held-out prompts that go wrong, after − before, below 0",
        tuple(parts),
        f"{sum(row.committed for row in aligned)} of {len(aligned)} committed",
    )


def _change(row: RoundReport) -> Estimate | None:
    """The round's change of loss: minus its gain. None of a round of alignment, which is about something else."""
    if row.gain is None or row.gain_error is None or row.aligned:
        return None
    return _normal(-row.gain, row.gain_error, row.rows)


def _mean_of(changes: Sequence[Estimate]) -> Estimate | None:
    """Mean over rounds, their rows taken as independent."""
    if not changes:
        return None
    error = math.sqrt(sum(change.error**2 for change in changes)) / len(changes)
    mean = sum(change.mean for change in changes) / len(changes)
    return _normal(mean, error, sum(change.rows for change in changes))


def _normal(mean: float, error: float, rows: int) -> Estimate | None:
    return measured(Estimate(mean, error, mean - NORMAL_95 * error, mean + NORMAL_95 * error, rows))
