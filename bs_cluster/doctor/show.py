"""Checks in a terminal of 80 columns or a log: what has to be done first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bs_cluster.doctor.checks import Check
from bs_cluster.planning.tables import WIDTH
from bs_cluster.report.terminal import terminal_console


def show(checks: Sequence[Check]) -> None:
    console = terminal_console(log_width=WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in sorted(checks, key=lambda check: check.ok):
        mark = Text("ok", "green") if check.ok else Text("NO", "bold red")
        where = Text.assemble((f"{check.node}: ", "bold") if check.node else "", check.told)
        table.add_row(mark, check.name, where)
    console.print(table)
    wrong = sum(not check.ok for check in checks)
    console.print(Text(f"{wrong} to be mended" if wrong else "fit", "bold red" if wrong else "bold green"))
