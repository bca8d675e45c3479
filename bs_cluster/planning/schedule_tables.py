"""A schedule on more and more GPUs as a person reads it: two tables, and what a line each says of them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from bs_cluster.planning.plan import Planner
from bs_cluster.planning.schedule import PARTS, Losses, Scale, Scheduled
from bs_cluster.planning.tables import WIDTH, Table, hours, markdown_tables, print_tables
from bs_cluster.report.terminal import terminal_console

NOTICE = {True: "with notice", False: "without notice"}


def show(scale: Scale, planner: Planner) -> None:
    console = terminal_console(log_width=WIDTH)
    console.print(Text(headline(scale, planner), "bold"))
    print_tables(console, tables(scale))


def markdown(scale: Scale, planner: Planner) -> str:
    return "\n".join([f"**{headline(scale, planner)}**", *markdown_tables(tables(scale))])


def headline(scale: Scale, planner: Planner) -> str:
    node = planner.on.node
    return f"{scale.campaign} on nodes {node.name}, rows of {planner.row_tokens} tokens: {_told(scale.losses)}"


def _told(losses: Losses) -> str:
    if not losses.per_node_day:
        return "no node is lost"
    return f"each node is lost {losses.per_node_day:g} times a day, {NOTICE[losses.notice]}"


def tables(scale: Scale) -> Iterator[Table]:
    yield _phases(scale)
    yield _domains(scale)


def _phases(scale: Scale) -> Table:
    """Phases down, GPUs across."""
    own = scale.own
    rows = [("that train", *(str(one.workers) for one in own))]
    rows += [(f"{name}, hours", *(_hours(getattr(one, part)) for one in own)) for part, name in PARTS.items()]
    rows += [
        ("in all, hours", *(_hours(one.hours) for one in own)),
        ("GPU time in which one waits", *(f"{one.idle:.0%}" for one in own)),
        ("of training, time that counts", *(f"{one.effective:.0%}" for one in own)),
    ]
    notes = [f"{_range(own, limit)}: {limit}." for limit in dict.fromkeys(one.limit for one in own)]
    if scale.overlap_saves_h or scale.side_by_side_saves_h:
        notes.append(
            f"What is not done and would save at {own[-1].gpus} GPUs, at most: closed domains swept beside training, "
            f"{_hours(scale.overlap_saves_h)} hours; domains trained side by side where no after forbids it, "
            f"{_hours(scale.side_by_side_saves_h)}, which would know nothing of each other's claims."
        )
    return Table(f"{own[0].domains} domains, by GPUs", ("", *(str(one.gpus) for one in own)), rows, notes)


def _range(own: tuple[Scheduled, ...], limit: str) -> str:
    gpus = [one.gpus for one in own if one.limit == limit]
    at = f"{gpus[0]}" if len(gpus) == 1 else f"{gpus[0]} to {gpus[-1]}"
    return f"What takes longest on {at} GPUs"


def _domains(scale: Scale) -> Table:
    rows = [
        (f"{every[0].domains} domains, hours in all", *(_hours(one.hours) for one in every))
        for every in scale.by_domains
    ]
    return Table("as domains are added, by GPUs", ("", *(str(one.gpus) for one in scale.own)), rows)


def _hours(value: float) -> str:
    return hours(value) if value else "0"
