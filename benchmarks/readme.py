"""What README says of a run, written from that run's report and checked against another's.

    python -m benchmarks.readme --write stacks_store/embedded/report/report.json   # fills README's marked region
    python -m benchmarks.readme --check stacks_store/embedded/report/report.json   # exit 1 where a run contradicts it

A run agrees with a line where the two 95 % intervals overlap and a statement that is said to hold, or to fail, still
does. A statement said to be undecided may come out either way.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bs_cluster.report.markdown import MARKS, table
from bs_cluster.report.record import Report
from bs_cluster.report.wording import interval, loss, signed, tally

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- measured: begin (python -m benchmarks.readme) -->", "<!-- measured: end -->"
MODES = ("base", "isolated", "ungated", "routed", "oracle")
FIGURES = ("loss_by_mode.png", "regret.png")


@dataclass(frozen=True)
class Line:
    """One line of the table. ``answer`` is empty for a loss, ends of the interval are None for a check."""

    name: str
    mean: float | None
    low: float | None
    high: float | None
    answer: str


def region(report: Report) -> str:
    """The marked region of README, markers included."""
    rows: list[Sequence[object]] = []
    for group in report.groups:
        for mode in MODES:
            if found := report.losses[mode][group]:
                rows.append([f"{mode}, rows of {group}", loss(found.mean), interval(found, ".3f"), found.rows, ""])
    for finding in report.findings:
        for part in finding.parts:
            if part.difference is not None:
                name = f"{finding.statement}: {part.name}" if part.name else finding.statement
                mark = f"{MARKS[part.answer]} {part.answer}"
                rows.append([name, signed(part.difference.mean), interval(part.difference), part.difference.rows, mark])
    for check in report.checks:
        if check.answer != "not measured":
            rows.append([check.statement, "", "", "", f"{MARKS[check.answer]} {check.answer}"])
    environment = report.environment
    made = ", ".join(f"{name} {environment[name]}" for name in ("machine", "torch") if name in environment)
    intro = (
        f"`{report.campaign}`, {len(report.domains)} domains on `{report.base.model}` ({report.base.quantization}): "
        f"{tally(report)}. {made}. Losses in nats per completion token, on {report.rows_note}; below them paired "
        "differences, where below 0 is better, then what holds by construction."
    )
    header = ["", "nats per token", "95 % interval", "rows", ""]
    return "\n\n".join([BEGIN, intro, table(header, rows), END])


def read(page: str) -> list[Line]:
    """The lines of the marked region of ``page``. Raises ValueError without one."""
    lines = []
    for row in re.findall(r"^\| (.*) \|$", _region_of(page), flags=re.MULTILINE)[2:]:
        name, mean, ends, _, answer = (cell.strip() for cell in row.replace("−", "-").split("|"))
        low, high = (float(end) for end in ends.strip("[]").split(",")) if ends else (None, None)
        lines.append(Line(name, float(mean) if mean else None, low, high, answer.split(" ", 1)[-1]))
    return lines


def write(page: str, report: Report) -> str:
    """``page`` with its marked region written anew."""
    return page.replace(_region_of(page), region(report))


def disagreements(published: Sequence[Line], measured: Sequence[Line]) -> list[str]:
    """What ``measured`` contradicts of ``published``, a sentence each."""
    now = {line.name: line for line in measured}
    found = []
    for line in published:
        other = now.get(line.name)
        if other is None:
            found.append(f"{line.name}: not in this run's report")
            continue
        if line.answer in ("holds", "fails") and other.answer != line.answer:
            found.append(f"{line.name}: README says {line.answer}, this run says {other.answer}")
        if not _overlap(line, other):
            found.append(
                f"{line.name}: README says {line.mean} [{line.low}, {line.high}], "
                f"this run {other.mean} [{other.low}, {other.high}]"
            )
    return found


def _overlap(a: Line, b: Line) -> bool:
    """Checks, which have no interval, do."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return True
    return a.low <= b.high and b.low <= a.high


def _region_of(page: str) -> str:
    begin, end = page.find(BEGIN), page.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"the page has no region between {BEGIN!r} and {END!r}; add the two lines where it belongs")
    return page[begin : end + len(END)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="REPORT", help="fill README's region from this report.json")
    action.add_argument("--check", type=Path, metavar="REPORT", help="compare this report.json with README")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    page = options.readme.read_text(encoding="utf-8")
    if options.write:
        options.readme.write_text(write(page, Report.from_json(options.write.read_bytes())), encoding="utf-8")
        for name in FIGURES:
            figure = options.write.parent / "figures" / name
            if figure.exists():
                (options.readme.parent / "docs" / "images").mkdir(parents=True, exist_ok=True)
                shutil.copyfile(figure, options.readme.parent / "docs" / "images" / name)
        return 0
    report = Report.from_json(options.check.read_bytes())
    published = read(page)
    contradicted = disagreements(published, read(region(report)))
    print("\n".join(contradicted) or f"{len(published)} lines of README agree with this run")
    return 1 if contradicted else 0


if __name__ == "__main__":
    sys.exit(main())
