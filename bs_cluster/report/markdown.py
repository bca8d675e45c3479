"""The report as a page: verdicts first, then the tables they rest on, then the figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bs_cluster.report.inputs import MODES

NOT_MEASURED = "–"
# The oracle picks a subset per row in hindsight: a bound, never the best of what one could serve.
SERVABLE = tuple(mode for mode in MODES if mode != "oracle")


def render_markdown(report: dict[str, Any]) -> str:
    """GitHub-flavoured Markdown. ``report['figures']`` (file, title), when there, are linked relative to the page."""
    sections = [
        _head(report),
        _verdicts(report),
        _losses(report),
        _rounds(report),
        _router(report),
        _sweep(report),
        _null_space(report),
        _data(report),
        _timing(report),
        _figures(report),
        _environment(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column reads left, the others right. Cells are escaped, not trusted."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _head(report: dict[str, Any]) -> str:
    base = report["base"]
    held = sum(verdict["holds"] for verdict in report["verdicts"])
    return (
        f"# {report['campaign']}\n\n"
        f"{len(report['domains'])} domains ({', '.join(report['domains'])}) "
        f"on `{base['model']}` ({base['quantization']}). "
        f"**{held} of {len(report['verdicts'])} claims hold.** Losses are nats per completion token; lower is better."
    )


def _verdicts(report: dict[str, Any]) -> str:
    lines = ["## Verdicts", ""]
    for verdict in report["verdicts"]:
        mark = "✅" if verdict["holds"] else "❌ **Does not hold:**"
        lines.append(f"- {mark} **{verdict['claim']}.** {_cell(verdict['detail'])}.")
    lines += [f"- ➖ {gap['claim']}: not measured, {_cell(gap['detail'])}." for gap in report["not_measured"]]
    return "\n".join(lines)


def _losses(report: dict[str, Any]) -> str:
    loss = report["loss"]
    rows = []
    for domain in report["domains"]:
        servable = [loss[mode][domain] for mode in SERVABLE if loss[mode][domain] is not None]
        best = min(servable, default=None)
        cells = [
            f"**{_loss(loss[mode][domain])}**"
            if mode in SERVABLE and best is not None and loss[mode][domain] == best
            else _loss(loss[mode][domain])
            for mode in MODES
        ]
        at_commit = _loss(report["isolated_at_commit"].get(domain))
        rows.append([domain, *cells, at_commit])
    notes = [f"*{mode}*: {_cell(note)}." for mode, note in report["loss_notes"].items()]
    legend = "Bold is the best that can be served. *parents*: with the stacks that were active in its training."
    body = table(["domain", *MODES, "isolated at commit"], rows)
    return "\n\n".join(["## Loss by domain and mode", body, " ".join([legend, *notes])])


def _rounds(report: dict[str, Any]) -> str:
    if not report["stacks"]:
        return "## Rounds\n\nNo round was run."
    rows = [
        [
            f"{row['domain']} r{row['round']}",
            _loss(row["val_before"]),
            _loss(row["val_after"]),
            _change(row["val_before"], row["val_after"]),
            "committed" if row["committed"] else "rejected",
            row["steps"],
            row["restores"],
            _duration(row["seconds"]),
            row["reason"],
            f"`{row['manifest'][:12]}`" if row["manifest"] else NOT_MEASURED,
        ]
        for row in report["stacks"]
    ]
    header = ["stack", "before", "after", "change", "", "steps", "restores", "time", "reason", "manifest"]
    return "## Rounds of residual boosting\n\n" + table(header, rows)


def _router(report: dict[str, Any]) -> str:
    router = report["router"]
    policies = (
        ("meta-router", "regret"),
        ("by label", "label_regret"),
        ("best single domain", "best_single_regret"),
        ("all domains on", "all_on_regret"),
        ("base alone", "base_regret"),
    )
    measured = [(name, router[key]) for name, key in policies if router[key] is not None]
    if not measured:
        return ""
    best = min(regret for _, regret in measured)
    rows = [[name, f"**{_regret(value)}**" if value == best else _regret(value)] for name, value in measured]
    intro = "Regret: loss above the best combination per row in hindsight, on rows the meta-router never saw."
    if router["accuracy"] is not None:
        intro += f" The domains it chose measured as good as that best on {_percent(router['accuracy'])} of the rows."
    parts = ["## Meta-router", intro, table(["routing", "regret (nats)"], rows)]
    if by_domain := router.get("by_domain"):
        lines = [[domain, *(_regret(row.get(key)) for _, key in policies)] for domain, row in by_domain.items()]
        parts += ["Regret by the row's true domain:", table(["rows of", *(name for name, _ in policies)], lines)]
    if report["gates"]:
        gate_rows = [
            [true, *(_gate(report["gates"][true].get(domain)) for domain in report["domains"])]
            for true in report["domains"]
            if true in report["gates"]
        ]
        parts += [
            "Mean gate weight served, by the row's true domain:",
            table(["rows of", *report["domains"]], gate_rows),
        ]
    return "\n\n".join(parts)


def _sweep(report: dict[str, Any]) -> str:
    sweep = report["sweep"]
    if sweep["rows"] is None:
        return ""
    facts = f"{sweep['rows']:,.0f} rows"
    facts += f" under {sweep['combinations']:,.0f} combinations" if sweep["combinations"] is not None else ""
    facts += f", {sweep['rows_per_s']:.1f} scored rows per second" if sweep["rows_per_s"] is not None else ""
    parts = ["## Sweep", facts + "."]
    if sweep["best"]:
        rows = [
            [domain, " + ".join(best["domains"]) or "base alone", f"{best['gain']:.3f}"]
            for domain, best in sweep["best"].items()
        ]
        parts.append(table(["rows of", "best combination on average", "gain over base (nats/token)"], rows))
    return "\n\n".join(parts)


def _null_space(report: dict[str, Any]) -> str:
    widths = sorted({width for shares in report["capacity"].values() for width in shares}, key=int)
    parts = []
    if widths:
        rows = [
            [
                domain,
                f"{report['basis_rank_mean'][domain]:.1f}"
                if report["basis_rank_mean"][domain] is not None
                else NOT_MEASURED,
                *(_percent(shares.get(width)) for width in widths),
            ]
            for domain, shares in report["capacity"].items()
        ]
        intro = "Directions claimed after each domain, as the largest share at any site of that output width."
        parts += [intro, table(["after", "mean rank claimed", *(f"width {width}" for width in widths)], rows)]
    if report["overlap"]:
        names = [domain for domain in report["domains"] if domain in report["overlap"]]
        rows = [[a, *(_small(report["overlap"][a].get(b)) for b in names)] for a in names]
        parts += ["Mean squared cosine between two domains' claimed directions:", table(["", *names], rows)]
    return "\n\n".join(["## Null space: capacity and overlap", *parts]) if parts else ""


def _data(report: dict[str, Any]) -> str:
    counts = report["data_counts"]
    if not counts:
        return ""
    columns = list(dict.fromkeys(name for row in counts.values() for name in row))
    rows = [[domain, *(row.get(name, NOT_MEASURED) for name in columns)] for domain, row in counts.items()]
    return "## Data\n\nRows, after and through decontamination.\n\n" + table(["domain", *columns], rows)


def _timing(report: dict[str, Any]) -> str:
    timing = {phase: seconds for phase, seconds in report["timing"].items() if seconds is not None}
    if not timing:
        return ""
    return "## Time\n\n" + table(["phase", "time"], [[phase, _duration(s)] for phase, s in timing.items()])


def _figures(report: dict[str, Any]) -> str:
    figures = report.get("figures", [])
    return "\n\n".join(["## Figures", *(f"![{f['title']}]({f['file']})" for f in figures)]) if figures else ""


def _environment(report: dict[str, Any]) -> str:
    facts = [f"{name} {value}" for name, value in report["environment"].items()]
    digest = f"Base digest `{report['base']['digest']}`."
    config = f"<details><summary>Configuration</summary>\n\n```yaml\n{report['config'].rstrip()}\n```\n\n</details>"
    return "\n\n".join(["## Made with", ", ".join([*facts]) + (". " if facts else "") + digest, config])


def _loss(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3f}"


def _regret(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4f}".replace("-", "−")


def _gate(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def _small(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2g}"


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def _change(before: float | None, after: float | None) -> str:
    return NOT_MEASURED if before is None or after is None else f"{after - before:+.3f}".replace("-", "−")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
