"""A plan as a person reads it: in a terminal of 80 columns or a log, and as Markdown for a page. The same tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bs_cluster.planning.hardware import GB
from bs_cluster.planning.memory import Footprint
from bs_cluster.planning.plan import STAGES, Plan
from bs_cluster.report.terminal import terminal_console

WIDTH = 80  # columns where no terminal says how many it has


@dataclass(frozen=True)
class Table:
    """Words to the left, all other columns to the right. ``notes`` follow it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def show(plan: Plan) -> None:
    console = terminal_console(log_width=WIDTH)
    console.print(Text(headline(plan), "bold"))
    for line in verdict(plan):
        console.print(Text(line, "red" if plan.misfits or _without_room(plan) else "green"))
    print_tables(console, tables(plan))


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    for table in tables:
        console.print()
        console.print(_rich(table))
        for note in table.notes:
            console.print(Text(note, "dim"))


def markdown(plan: Plan) -> str:
    lines = [f"**{headline(plan)}**", ""]
    lines += [line.replace("  ", "  - ", 1) if line.startswith("  ") else f"- {line}" for line in verdict(plan)]
    return "\n".join([*lines, *markdown_tables(tables(plan))])


def markdown_tables(tables: Iterable[Table]) -> list[str]:
    lines: list[str] = []
    for table in tables:
        lines += ["", "| " + " | ".join([table.title, *table.header[1:]]) + " |"]
        lines += ["|---|" + "---:|" * (len(table.header) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        lines += ["", *table.notes] if table.notes else []
    return lines


def headline(plan: Plan) -> str:
    node, cost = plan.node, plan.cost
    kind = f"{node.gpus} × {node.memory_gb:g} GB" if node.gpus else f"no GPU, {node.memory_gb:g} GB"
    nodes = f"{cost.training_nodes} node{'s' if cost.training_nodes > 1 else ''}"
    return f"{plan.campaign}: {plan.workers} worker{'s' if plan.workers > 1 else ''} on {nodes} {node.name} ({kind})"


def verdict(plan: Plan) -> Iterator[str]:
    """What does not fit, why and what to change, a line each; or that all of it does."""
    for misfit in plan.misfits:
        yield f"does not fit: {misfit.what} wants {gb(misfit.wants)} GB and has {gb(misfit.has)} ({misfit.why})"
        for remedy in misfit.remedies:
            yield f"  {remedy.settings}: {gb(remedy.wants)} GB, {'fits' if remedy.fits else 'too much still'}"
        if not any(remedy.fits for remedy in misfit.remedies):
            yield f"  it takes {misfit.otherwise}"
    if _without_room(plan):
        yield f"no room: domain {plan.room.full} finds nothing free where {plan.room.tightest}"
        yield "  a smaller null_space.max_share or null_space.max_rank, or fewer domains"
    if not plan.misfits and not _without_room(plan):
        worker, evaluator = gb(plan.worker.peak), gb(plan.evaluator.peak)
        yield f"fits: a worker wants {worker} of {gb(plan.usable)} GB, an evaluator {evaluator}"


def _without_room(plan: Plan) -> bool:
    return plan.room.full is not None and plan.room.full <= plan.growth[0].domains


def tables(plan: Plan) -> Iterator[Table]:
    yield _model(plan)
    yield _memory(plan)
    yield _evaluator(plan)
    yield _work(plan)
    yield _cost(plan)
    yield _growth(plan)
    yield _assumed(plan)


def _model(plan: Plan) -> Table:
    model = plan.model
    rows = [
        ("base, loaded", f"{model.base_parameters / 1e9:.2f} G", gb(model.base_bytes)),
        ("a stack, in the store", f"{model.stack_parameters / 1e6:.1f} M", gb(model.stack_bytes)),
        ("a stack, frozen on a device", "", gb(model.stack_resident)),
        ("a first domain's claim, at most", "", gb(model.claim_bytes)),
    ]
    return Table(model.base, ("", "parameters", "GB"), rows, (f"{model.sites} projections carry stacks.",))


def _memory(plan: Plan) -> Table:
    """By part and ZeRO stage."""
    names = dict.fromkeys(part.name for stage in plan.stages for part in stage.parts)
    moments = dict.fromkeys(part.name for stage in plan.stages for part in stage.moments)
    rows = [(name, *(_of(stage, name) for stage in plan.stages)) for name in names]
    rows += [(f"+ {name}", *(_of(stage, name) for stage in plan.stages)) for name in moments]
    rows += [("in all", *(gb(stage.peak) for stage in plan.stages))]
    beside = ", ".join(f"{part.name} {gb(part.bytes)}" for part in plan.worker.host)
    notes = [f"Of moments (+) the largest counts. Usable: {gb(plan.usable)} GB."]
    notes += [f"Beside it in the host's memory: {beside} GB."] if beside else []
    title = "a worker, GB by ZeRO stage"
    return Table(title, ("", *(f"ZeRO {stage}" for stage in STAGES)), rows, notes)


def _evaluator(plan: Plan) -> Table:
    footprint = plan.evaluator
    rows = [(part.name, gb(part.bytes)) for part in footprint.parts]
    rows += [(f"+ {part.name}", gb(part.bytes)) for part in footprint.moments]
    return Table("an evaluator, all stacks", ("", "GB"), [*rows, ("in all", gb(footprint.peak))])


def _work(plan: Plan) -> Table:
    training, sweep = plan.training, plan.sweep
    rows = [
        ("rounds, if all are committed", f"{training.rounds:,}"),
        ("optimizer steps", f"{training.steps:,}"),
        ("tokens trained on, at most", amount(training.tokens)),
        ("rows scored in validation and closings", f"{training.scored_rows:,}"),
        ("rows streamed at closings, at most", f"{training.streamed_rows:,}"),
        (f"outcomes of the sweep, {sweep.search}, at most", f"{sweep.outcomes:,}"),
        ("batches of the sweep", f"{sweep.batches:,}"),
        ("domains that fire in a batch, in the mean", f"{sweep.active:.1f}"),
        ("answers generated, at most", f"{sweep.answers:,}"),
    ]
    return Table(
        "work", ("", "count"), rows, (f"Rows of {plan.row_tokens} tokens, {plan.completion_tokens} of them learned.",)
    )


def _cost(plan: Plan) -> Table:
    cost, volume = plan.cost, plan.volume
    rows = [
        ("a step, seconds", f"{cost.step_s:.2f}"),
        ("  of it the network's", f"{cost.step_network_s:.2f}"),
        ("training, hours", hours(cost.training_h)),
        ("closings, hours", hours(cost.closing_h)),
        ("sweep, hours", hours(cost.sweep_h)),
        ("meta-router, hours", hours(cost.router_h)),
        ("answers, hours", hours(cost.answers_h)),
        ("in all, hours", hours(cost.hours)),
        ("in all, USD", f"{cost.usd:,.0f}" if cost.usd >= 10 else f"{cost.usd:.2f}"),
        ("store, GB", gb(volume.store)),
        ("checkpoints of a round under way, GB", gb(volume.checkpoints)),
        ("a node's disk, GB", gb(volume.node_disk)),
        ("a worker's network a step, GB", gb(volume.step_network)),
        ("into a node at each start, at most, GB", gb(volume.start_network)),
        ("nodes that train, that sweep", f"{cost.training_nodes}, {cost.sweep_nodes}"),
    ]
    return Table("time, money, bytes", ("", ""), rows)


def _growth(plan: Plan) -> Table:
    rows = [
        (
            f"{grown.domains} domains{'' if grown.worker_bytes <= plan.usable else ', too much'}",
            gb(grown.worker_bytes),
            gb(grown.evaluator_bytes),
            gb(grown.store_bytes),
            hours(grown.hours),
            f"{grown.usd:,.0f}",
        )
        for grown in plan.growth
    ]
    room = plan.room
    notes = [
        f"Directions: less than a quarter free from domain {room.scarce} on, where {room.tightest}."
        if room.scarce
        else "Directions: more than a quarter free at every site for 200 domains."
    ]
    notes += [f"None are left there for domain {room.full}."] if room.full else []
    return Table("as domains are added", ("", "worker", "evaluator", "store", "hours", "USD"), rows, notes)


def _assumed(plan: Plan) -> Table:
    node, assumed = plan.node, plan.assumed
    lost = assumed.fragmentation if node.gpus else assumed.freed_kept
    rows = [
        (f"{node.name}, USD an hour", f"{node.usd_hour:g}"),
        ("share of its peak TFLOP/s that is reached", f"{assumed.compute_share:g} of {node.tflops:g}"),
        ("share of its bandwidth that is reached", f"{assumed.bandwidth_share:g} of {node.bandwidth_gb_s:g} GB/s"),
        ("network of a node", f"{node.network_gbit:g} Gbit/s"),
        ("reserved on a device", f"{assumed.reserved_gb:g} GB"),
        ("lost between tensors" if node.gpus else "freed and kept", f"{lost:.0%}"),
        ("rows of a source that gives no number", "10,000"),
    ]
    return Table(
        "assumed, not measured",
        ("", ""),
        rows,
        ("Give your own with --hardware, --row-tokens and --completion-tokens.",),
    )


def _of(footprint: Footprint, name: str) -> str:
    found = [part.bytes for part in (*footprint.parts, *footprint.moments) if part.name == name]
    return gb(found[0]) if found else ""


def gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= 10 * GB else f"{size / GB:.2f}"


def hours(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def amount(count: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return f"{count:,.0f}"


def _rich(table: Table) -> RichTable:
    found = RichTable(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    found.add_column(table.title, overflow="fold")
    for name in table.header[1:]:
        found.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        found.add_row(*row, style="bold" if row[0].startswith("in all") else "")
    return found
