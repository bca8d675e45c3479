"""The report as a page: findings first, then checks, then the tables they rest on, then the figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bs_cluster.estimates import Estimate, Share
from bs_cluster.report.record import ALL, ANSWER_MODES, POLICIES, Answer, Example, Report
from bs_cluster.report.wording import (
    NOT_MEASURED,
    ORACLE,
    SERVABLE,
    TABLE_MODES,
    best_servable,
    duration,
    held,
    interval,
    level,
    loss,
    percent,
    range_of_rows,
    signed,
    tally,
    unasked_rows,
    unmeasured,
)

MARKS: dict[Answer, str] = {"holds": "✅", "fails": "❌", "undecided": "❔", "not measured": "➖"}


def render_markdown(report: Report) -> str:
    """GitHub-flavoured Markdown; figures are linked relative to the page."""
    sections = [
        _head(report),
        findings(report),
        _checks(report),
        _losses(report),
        _answers(report),
        _router(report),
        _rounds(report),
        _aligned(report),
        _validation(report),
        _sweep(report),
        _null_space(report),
        _crossing(report),
        _data(report),
        _timing(report),
        _figures(report),
        _environment(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column reads left, the others right. Cells are escaped, not trusted."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _head(report: Report) -> str:
    base = report.base
    return (
        f"# {report.campaign}\n\n"
        f"{len(report.domains)} domains ({', '.join(report.domains)}) on `{base.model}` ({base.quantization}). "
        f"**{tally(report)}.** Losses are nats per completion token over all tokens of the rows named; lower is better."
    )


def findings(report: Report) -> str:
    """The findings as a section: what the numbers could have contradicted."""
    rows: list[Sequence[object]] = []
    for finding in report.findings:
        if finding.answer == "not measured":
            continue
        single = finding.parts[0] if len(finding.parts) == 1 else None
        detail = f" ({finding.detail})" if finding.detail else ""
        statement = f"**{finding.statement}**{detail}"
        figures = _difference(single.difference) if single else ("", "", "")
        rows.append([statement, *figures, finding.wanted, _answer(finding.answer)])
        if single is None:
            rows += [[p.name, *_difference(p.difference), "", _answer(p.answer)] for p in finding.parts]
    if not rows:
        return ""
    intro = (
        "Each could have failed. A difference is paired row by row on the same rows; below 0 is better. A finding "
        "holds or fails where its 95 % interval lies on one side of what is wanted; spanning both, it is undecided."
    )
    header = ["finding", "difference", "95 % interval", "rows", "wanted", ""]
    return "\n\n".join(["## Findings", intro, table(header, rows)])


def _checks(report: Report) -> str:
    known = [check for check in report.checks if check.answer != "not measured"]
    lines = [f"- {MARKS[check.answer]} **{check.statement}.** {_cell(check.detail)}." for check in known]
    lines += [
        f"- {MARKS[gap.answer]} {gap.statement}: not measured, {_cell(gap.detail)}." for gap in unmeasured(report)
    ]
    intro = "These hold by construction, unless the code is broken; they are judged exactly."
    return "\n\n".join(["## Checks", intro, "\n".join(lines)])


def _losses(report: Report) -> str:
    modes = report.modes(TABLE_MODES)
    if not modes:
        return ""
    rows = []
    for owner in report.measured_owners:
        best = best_servable(report, owner)
        cells = [
            f"**{loss(value)}**" if mode in SERVABLE and value is not None and value == best else loss(value)
            for mode in modes
            for value in [report.loss[mode][owner]]
        ]
        rows.append([owner, *cells, report.rows[owner]])
    for group in report.groups:
        totals = [report.losses[mode][group] for mode in modes]
        rows.append([group, *(loss(total.mean if total else None) for total in totals), report.rows[group]])
    spread = [
        [owner, *(interval(report.losses[mode][owner], ".3f") for mode in modes)]
        for owner in (*report.measured_owners, *report.groups)
    ]
    legend = (
        f"On {report.rows_note}. Bold is the best that can be served. *isolated*: own stacks alone, which is what "
        "routing by label serves; *ungated*: all stacks on; *best single*: the one domain that is best alone"
        + (f" ({report.router.best_single})" if report.router.best_single else "")
        + f"; *oracle*: {ORACLE}. "
        + (
            "*parents*: with the stacks that were active in its training."
            if "parents" in modes
            else "Stacks trained beside no others, so that *parents* is *isolated*."
        )
    )
    names = [mode.replace("_", " ") for mode in modes]
    return "\n\n".join(
        [
            "## Loss by mode",
            table(["rows of", *names, "rows"], rows),
            legend,
            "95 % intervals over rows, of each loss alone (differences are above, and far tighter):",
            table(["rows of", *names], spread),
        ]
    )


def _answers(report: Report) -> str:
    answers = report.answers
    unasked = unasked_rows(report)
    if not answers.rows:
        return "\n\n".join(["## Answers", "No answer was checked.", unasked]) if unasked else ""
    rows = [
        [name, *(_share(answers.right[mode][name]) for mode in ANSWER_MODES), n] for name, n in answers.rows.items()
    ]
    intro = (
        f"Right answers among greedy ones of at most {answers.tokens} tokens to sweep rows that a verifier can check, "
        "with 95 % intervals (Wilson). *routed* is under the gates of a meta-router that never saw the row; *oracle* "
        "is each row's best combination by loss, in hindsight: not by answer."
    )
    examples = [[of.owner, _quoted(of.prompt), _quoted(of.reference), *_verdicts(of)] for of in answers.examples]
    header = ["first row of", "prompt", "its source's answer", "base", "routed"]
    parts = ["## Answers", intro, table(["rows of", *ANSWER_MODES, "rows"], rows), *([unasked] if unasked else [])]
    return "\n\n".join([*parts, "The first row of each, whatever came of it:", table(header, examples)])


def _share(value: Share | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value.count} ({percent(value.mean)}) [{value.low:.2f}, {value.high:.2f}]"


def _verdicts(of: Example) -> list[str]:
    """The base's answer and the routed one, each with its mark."""
    given = ((of.base, of.base_right), (of.routed, of.routed_right))
    return [f"{MARKS['holds' if right else 'fails']} {_quoted(text)}" for text, right in given]


def _quoted(text: str) -> str:
    """A model's text or a prompt, cut to fit a cell; backticks would end the quotation, and no byte can be trusted."""
    flat = "".join(char if char.isprintable() else "�" for char in " ".join(text.split())).replace("`", "'")
    return f"`{flat if len(flat) <= 160 else flat[:159] + '…'}`" if flat else "(nothing)"


def _router(report: Report) -> str:
    router = report.router
    if not any(by_owner[ALL] for by_owner in router.regrets.values()):
        return ""
    lines = []
    for mode, by_owner in router.regrets.items():
        named = f" ({router.best_single})" if mode == "best_single" and router.best_single else ""
        lines.append([POLICIES[mode] + named, *_difference(by_owner[ALL])])
    intro = "Regret: loss above the best combination per row in hindsight, on rows the judged meta-router never saw."
    if router.accuracy is not None:
        intro += f" Its gates served {percent(router.accuracy)} of the rows as well as that best."
    parts = ["## Meta-router", intro, *router.notes, table(["routing", "regret", "95 % interval", "rows"], lines)]
    by_owner_lines = [
        [owner, *(_mean(by_owner[owner]) for by_owner in router.regrets.values()), report.rows[owner]]
        for owner in (*report.measured_owners, *report.groups)
    ]
    names = [POLICIES[mode] for mode in router.regrets]
    parts += ["Regret by whose rows they are:", table(["rows of", *names, "rows"], by_owner_lines)]
    if report.gates:
        gates = [
            [owner, *(_two(report.gates[owner].get(domain)) for domain in report.domains)]
            for owner in report.owners
            if owner in report.gates
        ]
        parts += ["Mean gate weight served:", table(["rows of", *report.domains], gates)]
    return "\n\n".join(parts)


def _rounds(report: Report) -> str:
    if not report.stacks:
        return "## Rounds\n\nNo round was run."
    rows = [
        [
            row.name,
            row.objective,
            level(row.val_before, row.objective),
            level(row.val_after, row.objective),
            signed(row.gain),
            "–" if row.gain_error is None else f"{row.gain_error:.3f}",
            row.rows,
            "committed" if row.committed else "rejected",
            row.steps,
            row.restores,
            duration(row.seconds),
            row.reason,
            f"`{row.manifest[:12]}`" if row.manifest else NOT_MEASURED,
        ]
        for row in report.stacks
    ]
    header = [
        "stack",
        "objective",
        "before",
        "after",
        "gain",
        "± s.e.",
        "rows",
        "",
        "steps",
        "restores",
        "time",
        "reason",
        "manifest",
    ]
    intro = (
        "Before, after and the paired gain are on the validation rows that decide about a commit, as many as the "
        "column says: neither the rows of the tables above nor those that selected the round's snapshot."
    )
    if any(row.aligned for row in report.stacks):
        intro += (
            " Of a dpo round they are the share of held-out pairs of which the chosen answer gained on the other over "
            "what the round began with, of a grpo round the share of drawn answers to held-out prompts that are right."
        )
    return "\n\n".join(["## Rounds", intro, table(header, rows)])


def _aligned(report: Report) -> str:
    """Answers to a few held-out prompts before each round of alignment and after it."""
    if not report.aligned_answers:
        return ""

    def verdict(text: str, right: bool | None) -> str:
        return _quoted(text) if right is None else f"{_quoted(text)} {MARKS['holds' if right else 'fails']}"

    rows = [
        [name, _quoted(of.prompt), verdict(of.before, of.right_before), verdict(of.after, of.right_after)]
        for name, examples in report.aligned_answers.items()
        for of in examples
    ]
    intro = "Greedy answers to held-out prompts before a round of alignment and after it, those that changed first."
    title, header = "### Answers before and after alignment", ["", "prompt", "before", "after"]
    return "\n\n".join([title, intro, table(header, rows)])


def _validation(report: Report) -> str:
    """What closed domains were left with, on the rows that chose it, and whether it moved since."""
    if not report.validation_rows:
        return ""
    rows = [
        [
            domain,
            loss(report.validation_base[domain]),
            loss(report.isolated_at_commit[domain]),
            _drift(report.isolated_drift, domain),
            count,
        ]
        for domain, count in report.validation_rows.items()
    ]
    intro = (
        f"The same validation rows ({range_of_rows(report)}) at the domain's closing and now. Some "
        "selected snapshots, the others decided on rounds, so that they flatter: what a domain is worth is in *Loss by "
        "mode*."
    )
    header = ["domain", "base", "isolated at commit", "largest change of a row since", "rows"]
    return "\n\n".join(["## Validation rows", intro, table(header, rows)])


def _drift(drift: Mapping[str, float | None], domain: str) -> str:
    if domain not in drift:
        return NOT_MEASURED
    moved = drift[domain]
    return "NaN on one side" if moved is None else "0" if moved == 0 else f"{moved:.3g}"


def _sweep(report: Report) -> str:
    sweep = report.sweep
    if sweep.rows is None:
        return ""
    facts = f"{sweep.rows:,} rows"
    facts += f" under {sweep.combinations:,} combinations" if sweep.combinations is not None else ""
    facts += f", {sweep.rows_per_s:.1f} scored rows per second" if sweep.rows_per_s else ""
    parts = ["## Sweep", facts + "."]
    if sweep.best:
        rows = [[owner, " + ".join(b.domains) or "base alone", loss(b.gain)] for owner, b in sweep.best.items()]
        header = ["rows of", "best combination on average, in hindsight", "gain over base"]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def _null_space(report: Report) -> str:
    widths = sorted({width for shares in report.capacity.values() for width in shares}, key=int)
    parts = []
    if widths:
        rows = [
            [
                domain,
                "–" if report.basis_rank_mean[domain] is None else f"{report.basis_rank_mean[domain]:.1f}",
                *(percent(shares.get(width)) for width in widths),
            ]
            for domain, shares in report.capacity.items()
        ]
        intro = "Directions claimed after each domain, as the largest share at any site of that width."
        parts += [intro, table(["after", "mean rank claimed", *(f"width {width}" for width in widths)], rows)]
    if report.overlap:
        names = [domain for domain in report.domains if domain in report.overlap]
        rows = [[a, *(_small(report.overlap[a].get(b)) for b in names)] for a in names]
        told = (
            "Mean squared cosine between two domains' claimed directions. Zero by parametrisation, whatever the deltas "
            "do; that is the check above. What claims leave out is in the tables below."
        )
        parts += [told, table(["", *names], rows)]
    return "\n\n".join(["## Null space: capacity and claims", *parts]) if parts else ""


def _crossing(report: Report) -> str:
    """What no parametrisation promises: how much claims hold, what crosses, and how loudly domains fire on others."""
    parts = [part for part in (_held(report), _delta_overlap(report), _foreign(report)) if part]
    if not parts:
        return ""
    intro = (
        "Energies, sums of squares over training tokens, none of which is made to be small. Each is the mean over "
        "sites, in brackets the worst site's."
    )
    return "\n\n".join(["## What claims hold and what crosses", intro, *parts])


def _held(report: Report) -> str:
    sides = {
        "output": "of what the domain's stacks write, in its own claim",
        "input": "of what they read, in all claims so far",
    }
    measured = [side for side in sides if any(side in held_by for held_by in report.energy_held.values())]
    if not measured:
        return ""
    rows = []
    for domain, held_by in report.energy_held.items():
        worst = [held_by[side].site for side in measured if side in held_by]
        rows.append([domain, *(held(held_by.get(side)) for side in measured), "; ".join(f"`{site}`" for site in worst)])
    header = ["domain", *(sides[side] for side in measured), "worst site"]
    return "**Energy held.** A claim is cut at a rank; the rest is free to later domains.\n\n" + table(header, rows)


def _delta_overlap(report: Report) -> str:
    names = [domain for domain in report.delta_overlap if any(domain in row for row in report.delta_overlap.values())]
    rows = [[later, *(held(row.get(name)) for name in names)] for later, row in report.delta_overlap.items() if row]
    told = (
        "**Overlap of deltas.** How much of a later domain's delta (rows) lies in the directions that hold 99 % of an "
        "earlier one's (columns):"
    )
    return f"{told}\n\n{table(['', *names], rows)}" if rows else ""


def _foreign(report: Report) -> str:
    names = [domain for domain in report.domains if domain in report.foreign]
    rows = [[on, *("100 %" if of == on else held(report.foreign[on].get(of)) for of in names)] for on in names]
    told = (
        "**Who fires where.** With all stacks on, what a domain's stacks (columns) write on the tokens of another "
        "(rows), against what that one's own write there: 100 % is as loud as they. To write in other directions is "
        "not to be silent. Measured when the later of the two closed."
    )
    return f"{told}\n\n{table(['tokens of', *names], rows)}" if any(report.foreign.values()) else ""


def _data(report: Report) -> str:
    counts = report.data_counts
    if not counts:
        return ""
    columns = list(dict.fromkeys(name for row in counts.values() for name in row))
    rows = [[domain, *(row.get(name, NOT_MEASURED) for name in columns)] for domain, row in counts.items()]
    return "## Data\n\nRows, after and through decontamination.\n\n" + table(["domain", *columns], rows)


def _timing(report: Report) -> str:
    timing = [[phase, duration(seconds)] for phase, seconds in report.timing.items() if seconds is not None]
    return "## Time\n\n" + table(["phase", "time"], timing) if timing else ""


def _figures(report: Report) -> str:
    images = [f"![{figure.title}]({figure.file})" for figure in report.figures]
    return "\n\n".join(["## Figures", *images]) if images else ""


def _environment(report: Report) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    digest = f"Base digest `{report.base.digest}`."
    config = f"<details><summary>Configuration</summary>\n\n```yaml\n{report.config.rstrip()}\n```\n\n</details>"
    return "\n\n".join(["## Made with", f"{facts}. {digest}" if facts else digest, config])


def _answer(answer: Answer) -> str:
    return f"{MARKS[answer]} {answer}"


def _difference(value: Estimate | None) -> tuple[str, str, object]:
    return (NOT_MEASURED, "", "") if value is None else (signed(value.mean), interval(value), value.rows)


def _mean(value: Estimate | None) -> str:
    return NOT_MEASURED if value is None else signed(value.mean)


def _two(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def _small(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2g}"
