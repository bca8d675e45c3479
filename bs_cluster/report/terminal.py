"""The report at the end of a run, in a terminal: at most 60 lines, aligned, nothing but the standard library."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from bs_cluster.report.inputs import MODES

MAX_LINES = 60
MAX_DOMAINS = 9  # rows shown per table; beyond that 60 lines would not hold them, and report.md has them all
MIN_WIDTH = 40

BOLD, DIM, GREEN, RED, BLUE, RESET = "\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[34m", "\033[0m"
ANSI = re.compile(r"\033\[\d+m")


def render_terminal(report: dict[str, Any], width: int = 100, colour: bool = True) -> str:
    """Verdicts, losses, rounds, routing and time, no line wider than ``width`` columns (at least 40)."""
    width = max(width, MIN_WIDTH)
    blocks = [_head(report), _verdicts(report, width), _losses(report, width), _rounds(report), _facts(report)]
    lines = [line for block in blocks if block for line in (*block, "")][:-1]
    lines = [_clip(line, width) for line in lines]
    assert len(lines) <= MAX_LINES, f"{len(lines)} lines"
    return "\n".join(line if colour else ANSI.sub("", line) for line in lines)


def visible_length(line: str) -> int:
    """Columns a line takes: its characters without the colour codes."""
    return len(ANSI.sub("", line))


def _head(report: dict[str, Any]) -> list[str]:
    held = sum(verdict["holds"] for verdict in report["verdicts"])
    total = len(report["verdicts"])
    tint = GREEN if held == total else RED
    base = report["base"]
    return [
        f"{BOLD}{report['campaign']}{RESET}  {tint}{held} of {total} claims hold{RESET}  "
        f"{DIM}{len(report['domains'])} domains on {base['model']}, {base['quantization']}{RESET}"
    ]


def _verdicts(report: dict[str, Any], width: int) -> list[str]:
    """A claim per line, with its detail on the same line where it fits and below where not."""
    lines = []
    for verdict in report["verdicts"]:
        mark = f"{GREEN}✓{RESET}" if verdict["holds"] else f"{RED}✗{RESET}"
        one = f"{mark} {verdict['claim']}  {DIM}{verdict['detail']}{RESET}"
        if visible_length(one) <= width:
            lines.append(one)
        else:
            detail = textwrap.wrap(verdict["detail"], width - 4, max_lines=2, placeholder=" …")
            lines += [f"{mark} {verdict['claim']}", *(f"    {DIM}{line}{RESET}" for line in detail)]
    lines += [f"{DIM}– {gap['claim']}: {gap['detail']}{RESET}" for gap in report["not_measured"]]
    return lines


def _losses(report: dict[str, Any], width: int) -> list[str]:
    """Loss by domain and mode, the best that can be served in bold; the last modes give way on a narrow terminal."""
    column = 10
    modes = MODES[: max(1, min(len(MODES), (width - 14) // column))]
    name = max(8, min(max(map(len, report["domains"]), default=8), width - column * len(modes)))
    lines = [DIM + "loss".ljust(name) + "".join(mode.rjust(column) for mode in modes) + RESET]
    for domain in report["domains"][:MAX_DOMAINS]:
        values = [report["loss"][mode][domain] for mode in modes]
        servable = [v for mode, v in zip(modes, values, strict=True) if mode != "oracle" and v is not None]
        best = min(servable, default=None)
        cells = []
        for mode, value in zip(modes, values, strict=True):
            text = ("–" if value is None else f"{value:.3f}").rjust(column)
            is_best = mode != "oracle" and value is not None and value == best
            cells.append(f"{BOLD}{GREEN}{text}{RESET}" if is_best else text)
        lines.append(_clip(domain, name).ljust(name) + "".join(cells))
    return lines + _more(report["domains"])


def _rounds(report: dict[str, Any]) -> list[str]:
    """A domain per line: the loss it started from, then each round's, crossed where rejected."""
    closed = [domain for domain in report["domains"] if any(row["domain"] == domain for row in report["stacks"])]
    if not closed:
        return []
    name = min(max(map(len, closed)), 24)
    lines = [f"{DIM}rounds{RESET}"]
    for domain in closed[:MAX_DOMAINS]:
        rows = [row for row in report["stacks"] if row["domain"] == domain]
        line = _clip(domain, name).ljust(name) + "  " + _loss(rows[0]["val_before"])
        for row in rows:
            kept = f"{GREEN}✓{RESET}" if row["committed"] else f"{RED}✗{RESET}"
            line += f"  {DIM}r{row['round']}{RESET} {_loss(row['val_after'])} {kept}"
        lines.append(line)
    return lines + _more(closed)


def _facts(report: dict[str, Any]) -> list[str]:
    router, sweep = report["router"], report["sweep"]
    lines = []
    regrets = [("router", "regret"), ("label", "label_regret"), ("all on", "all_on_regret"), ("base", "base_regret")]
    shown = [f"{name} {router[key]:.4f}" for name, key in regrets if router[key] is not None]
    if shown:
        accuracy = "" if router["accuracy"] is None else f"  accuracy {100 * router['accuracy']:.0f} %"
        lines.append(f"{DIM}regret{RESET}  {'  '.join(shown)}{accuracy}")
    if sweep["rows"] is not None:
        facts = [f"{sweep['rows']:,.0f} rows"]
        facts += [f"{sweep['combinations']:,.0f} combinations"] if sweep["combinations"] is not None else []
        facts += [f"{sweep['rows_per_s']:.1f} scored rows/s"] if sweep["rows_per_s"] is not None else []
        lines.append(f"{DIM}sweep{RESET}   {', '.join(facts)}")
    shares = [share for by_width in report["capacity"].values() for share in by_width.values() if share is not None]
    if shares:
        lines.append(f"{DIM}claimed{RESET} at most {100 * max(shares):.1f} % of a site's output directions")
    timing = [f"{phase} {seconds:.0f} s" for phase, seconds in report["timing"].items() if seconds is not None]
    if timing:
        lines.append(f"{DIM}time{RESET}    {', '.join(timing)}")
    return lines


def _more(names: Sequence[str]) -> list[str]:
    hidden = len(names) - MAX_DOMAINS
    return [f"{DIM}… {hidden} more in report.md{RESET}"] if hidden > 0 else []


def _clip(line: str, width: int) -> str:
    """``line`` cut to ``width`` visible columns, the cut marked, colours closed."""
    if visible_length(line) <= width:
        return line
    kept, shown = [], 0
    for part in re.split(r"(\033\[\d+m)", line):
        if ANSI.fullmatch(part):
            kept.append(part)
        else:
            kept.append(part[: width - 1 - shown])
            shown += len(kept[-1])
        if shown >= width - 1:
            break
    return "".join(kept) + "…" + (RESET if "\033" in line else "")


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
