"""The report at the end of a run, in a terminal: what was found, then the tables it rests on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bs_cluster.estimates import Estimate
from bs_cluster.report.record import ALL, ANSWER_MODES, POLICIES, Answer, Finding, Report
from bs_cluster.report.wording import (
    MARKS,
    NOT_MEASURED,
    ORACLE,
    TABLE_MODES,
    best_servable,
    duration,
    interval,
    level,
    loss,
    percent,
    signed,
    tally,
    ungated,
    unmeasured,
)

MAX_ROWS = 12  # lines shown a table; report.md has them all
LOG_WIDTH = 100  # columns where no terminal says how many it has
COLOURS: dict[Answer, str] = {"holds": "green", "fails": "red", "undecided": "yellow", "not measured": "dim"}


def terminal_console(file: TextIO | None = None, log_width: int = LOG_WIDTH) -> Console:
    """A console that writes no escape codes into a log, none where NO_COLOR is set, and fits the terminal's width."""
    console = Console(file=file, highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = log_width
    return console


def render_terminal(report: Report) -> RenderableType:
    """Findings with their intervals, checks, losses, rounds, routing and time, for rich's ``print``."""
    blocks = [
        _head(report),
        findings_table(report.findings),
        _checks(report),
        _losses(report),
        _answers(report),
        _routing(report),
        _rounds(report),
        _validation(report),
        _facts(report),
    ]
    spaced = [item for block in blocks if block is not None for item in (block, Text(""))]
    return Group(*spaced[:-1])


def _head(report: Report) -> Text:
    base = report.base
    return Text.assemble(
        (report.campaign, "bold"),
        f"  {tally(report)}  ",
        (f"{len(report.domains)} domains on {base.model}, {base.quantization}", "dim"),
    )


def findings_table(findings: Sequence[Finding]) -> Table | None:
    """A line a finding; one of several parts has a line for each below it."""
    table = _marked("findings, in nats per completion token where nothing else is said; below 0 is better")
    for name in ("difference", "95 % interval", "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for finding in findings:
        if finding.answer == "not measured":
            continue
        single = finding.parts[0] if len(finding.parts) == 1 else None
        statement = Text(finding.statement)
        if finding.answer == "undecided":
            statement.append(": undecided", "yellow")
        if finding.detail:
            statement.append(f" ({finding.detail})", "dim")
        table.add_row(_mark(finding.answer), statement, *(_difference(single.difference) if single else ("", "", "")))
        if single is None:
            for part in finding.parts[:MAX_ROWS]:
                name = Text.assemble(_mark(part.answer), (f" {part.name}", "dim"))
                table.add_row("", name, *_difference(part.difference))
            _more(table, len(finding.parts), "")
    return table if table.rows else None


def _checks(report: Report) -> Table | None:
    table = _marked("checks: hold by construction")
    for check in report.checks:
        if check.answer != "not measured":
            table.add_row(_mark(check.answer), Text.assemble(check.statement, (f"  {check.detail}", "dim")))
    for gap in unmeasured(report):
        table.add_row(_mark(gap.answer), Text(f"{gap.statement}: not measured; {gap.detail}", "dim"))
    return table if table.rows else None


def _losses(report: Report) -> RenderableType | None:
    """Loss by owner and mode, the best that can be served in bold."""
    modes = report.modes(TABLE_MODES)
    if not modes:
        return None
    table = _table("loss", *(mode.replace("_", " ") for mode in modes), "rows")
    for owner in report.measured_owners[:MAX_ROWS]:
        best = best_servable(report, owner)
        cells = []
        for mode in modes:
            value = report.loss[mode][owner]
            is_best = mode != "oracle" and value is not None and value == best
            cells.append(Text(loss(value), "bold green" if is_best else ""))
        table.add_row(owner, *cells, str(report.rows[owner]))
    _more(table, len(report.measured_owners))
    for group in report.groups:
        totals = [report.losses[mode][group] for mode in modes]
        table.add_row(group, *(loss(t.mean if t else None) for t in totals), str(report.rows[group]), style="dim")
    oracle = f"; oracle: {ORACLE}" if "oracle" in modes else ""
    return Group(table, Text(f"on {report.rows_note}{oracle}", "dim"))


def _answers(report: Report) -> RenderableType | None:
    """Right answers by whose rows they are and by mode."""
    answers = report.answers
    if not answers.rows:
        return None
    table = _table("right answers", *ANSWER_MODES, "rows")
    owners = [name for name in answers.rows if name in report.owners]
    for name in (*owners[:MAX_ROWS], *(name for name in answers.rows if name not in owners)):
        found = [answers.right[mode][name] for mode in ANSWER_MODES]
        cells = [NOT_MEASURED if of is None else percent(of.mean) for of in found]
        table.add_row(name, *cells, str(answers.rows[name]), style="" if name in owners else "dim")
    _more(table, len(owners))
    return Group(table, Text(f"greedy, at most {answers.tokens} tokens, rows that a verifier can check", "dim"))


def _routing(report: Report) -> RenderableType | None:
    regrets = {mode: by_owner[ALL] for mode, by_owner in report.router.regrets.items() if by_owner[ALL]}
    if not regrets:
        return None
    table = _table("regret: loss above the best combination in hindsight", "nats per token", "95 % interval", "rows")
    for mode, regret in regrets.items():
        assert regret is not None
        named = f" ({report.router.best_single})" if mode == "best_single" and report.router.best_single else ""
        table.add_row(POLICIES[mode] + named, signed(regret.mean), interval(regret), str(regret.rows))
    return Group(table, *(Text(note, "dim") for note in report.router.notes))


def _rounds(report: Report) -> Table | None:
    """A domain a line, on the rows that decided about its rounds: before the first, after each."""
    trained = [domain for domain in report.domains if any(row.domain == domain for row in report.stacks)]
    if not trained:
        return None
    last = max(row.round for row in report.stacks)
    numbers = range(1, last + 1)
    table = _table("rounds, on the rows that decide", "before", *(f"round {number}" for number in numbers), "rows")
    for domain in trained[:MAX_ROWS]:
        rows = {row.round: row for row in report.stacks if row.domain == domain}
        first, cells = rows[min(rows)], []
        for number in numbers:
            row = rows.get(number)
            mark = _mark("holds" if row.committed else "fails") if row else ""
            cells.append(Text.assemble(f"{level(row.val_after, row.objective)} ", mark) if row else Text(""))
        table.add_row(domain, level(first.val_before, first.objective), *cells, str(first.rows))
    _more(table, len(trained))
    return table


def _validation(report: Report) -> Table | None:
    """A domain a line, on all its validation rows: the base, its own stacks when it closed, what moved since."""
    if not report.validation_rows:
        return None
    table = _table("all validation rows", "base", "at closing", "moved", "rows")
    for domain, count in [*report.validation_rows.items()][:MAX_ROWS]:
        moved = report.isolated_drift.get(domain)
        told = NOT_MEASURED if moved is None else "0" if moved == 0 else f"{moved:.2g}"
        alone = loss(report.isolated_at_commit[domain])
        table.add_row(domain, loss(report.validation_base[domain]), alone, told, str(count))
    _more(table, len(report.validation_rows))
    return table


def _facts(report: Report) -> Table:
    sweep, lines = report.sweep, []
    if sweep.rows is not None:
        facts = [f"{sweep.rows:,} rows"]
        facts += [f"{sweep.combinations:,} combinations"] if sweep.combinations is not None else []
        facts += [f"{sweep.rows_per_s:.1f} scored rows/s"] if sweep.rows_per_s else []
        lines.append(("sweep", ", ".join(facts)))
    if report.router.accuracy is not None:
        told = f"its gates served {percent(report.router.accuracy)} of the rows as well as the best"
        lines.append(("router", told))
    shares = [share for widths in report.capacity.values() for share in widths.values() if share is not None]
    if shares:
        lines.append(("claimed", f"at most {percent(max(shares))} of a site's directions{_holding(report)}"))
    if told := ungated(report):
        lines.append(("ungated", told))
    timing = [f"{phase} {duration(seconds)}" for phase, seconds in report.timing.items() if seconds is not None]
    if timing:
        lines.append(("time", ", ".join(timing)))
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, told in lines:
        facts.add_row(Text(name, "dim"), Text(told))
    return facts


def _holding(report: Report) -> str:
    """``; they hold 94.1 % (77.0 % at the worst site) of what a domain writes``."""
    parts = []
    for side, what in (("output", "writes"), ("input", "reads")):
        spreads = [sides[side] for sides in report.energy_held.values() if side in sides]
        if spreads:
            mean, worst = sum(s.mean for s in spreads) / len(spreads), min(s.worst for s in spreads)
            parts.append(f"{percent(mean)} of the energy that a domain {what} ({percent(worst)} at the worst site)")
    return f"; they hold {' and '.join(parts)}" if parts else ""


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column(first, overflow="fold", min_width=12)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _marked(title: str) -> Table:
    """A table of statements: a mark, then the statement, which may take several lines."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", no_wrap=True, width=1)
    table.add_column(title, overflow="fold")
    return table


def _mark(answer: Answer) -> Text:
    return Text(MARKS[answer], COLOURS[answer])


def _difference(value: Estimate | None) -> Sequence[str]:
    if value is None:
        return NOT_MEASURED, "", ""
    return signed(value.mean), interval(value), str(value.rows)


def _more(table: Table, count: int, *before: str) -> None:
    if count > MAX_ROWS:
        table.add_row(*before, f"… {count - MAX_ROWS} more in report.md", style="dim")
