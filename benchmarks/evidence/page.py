"""docs/EVIDENCE.md and its figures, from what stages kept; nothing in them is written by hand but what was done."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks import psn_found
from benchmarks.evidence.compare import (
    ALIKE,
    BASE,
    KINDS,
    OURS,
    RIVALS,
    SERVED,
    Method,
    backward,
    difference,
    domain_loss,
    forgotten,
    forward,
    last_stage,
    loras,
    paired,
    with_it,
)
from benchmarks.evidence.figure import draw
from benchmarks.evidence.instead import WEIGHTS, Choices
from benchmarks.evidence.record import Instead
from benchmarks.evidence.variants import Variant, section
from bs_cluster.report.markdown import table
from bs_cluster.report.style import save, style
from bs_cluster.report.wording import NOT_MEASURED, duration, loss, signed

SEEDS = 3  # what a claim wants at least
DATA = {"embedded": "The embedded domains", "jsonl": "Real instructions"}


def write(results: Path, docs: Path) -> None:
    """The page and a figure for each kind of data, from the results that are there and complete."""
    groups, varied = read(results), read_variants(results)
    (docs / "images").mkdir(parents=True, exist_ok=True)
    with style():
        for data, campaigns in groups.items():
            save(draw(campaigns), docs / "images" / figure_name(data))
    random = psn_found.read(results / "psn.json")
    (docs / "EVIDENCE.md").write_text(render(groups, read_choices(results), varied, random), encoding="utf-8")


def read(results: Path) -> dict[str, list[Instead]]:
    """Campaigns by what data they are of, in the order of their names; one without a LoRA a domain is left out."""
    found = [Instead.load(path) for path in sorted((results / "instead").glob("*.json"))]
    begun = [one for one in found if set(loras(one)) <= set(one.tried)]
    by_data = sorted(begun, key=lambda one: one.data)
    return {data: list(own) for data, own in itertools.groupby(by_data, key=lambda one: one.data)}


def read_variants(results: Path) -> list[Variant]:
    return [Variant.load(path) for path in sorted((results / "variants").glob("*.json"))]


def read_choices(results: Path) -> Choices:
    return Choices.from_dict(json.loads((results / "choices.json").read_text()))


def figure_name(data: str) -> str:
    return f"instead_{data}.png"


def render(
    groups: dict[str, list[Instead]],
    choices: Choices,
    varied: Sequence[Variant] = (),
    random: Sequence[psn_found.Found] = (),
) -> str:
    parts = [
        "# Evidence",
        "Written by `python -m benchmarks.evidence` from `benchmarks/evidence/results`; `make evidence` measures it "
        "anew. What goes against this method stands here as plainly as what speaks for it.",
        "## Instead: what one would do without this",
        "Nats per completion token, lower is better. All methods answer the very same rows, which none of them was "
        "trained on, and *less ours* is the paired difference to what is served, the meta-router's choice by a router "
        "that never saw the row: **below 0, the rival is better**. 95 % intervals over rows.",
    ]
    for data, campaigns in groups.items():
        parts += _of_data(data, campaigns)
    shipped = list(itertools.chain.from_iterable(groups.values()))
    parts += section(varied, shipped)
    parts += _boundary(random)
    parts += ["## Not measured", _missing(groups)]
    parts += _how(shipped, choices)
    return "\n\n".join(parts) + "\n"


def _boundary(random: Sequence[psn_found.Found]) -> list[str]:
    """Stacks where there is no model to build on: what they reach, and what else would with as many parameters."""
    whole = [found for found in random if found.confined and found.blocks is not None]
    if not whole:
        return []
    free = {found.seed: found for found in random if not found.confined}
    parts = [
        "## Where it ends: a language model from stacks alone",
        "On a base of random weights there is nothing to adapt ([how](psn.md)): all that is known of a domain is in "
        "its stacks. Beside them, from the same batches and with as many parameters: a dense model a domain and one of "
        "all of them, from scratch, and blocks of a domain's own on a part of the residual stream. Nats per completion "
        "byte; differences below 0 are for the stacks, with 95 % intervals over rows.",
    ]
    for found in whole:
        shown = psn_found.table(found)
        told = psn_found.lines(found, free.get(found.seed))
        parts += [f"`{found.campaign}`, seed {found.seed}:", table(list(shown.columns), shown.rows)]
        parts.append(psn_found.boundary(found, free.get(found.seed)))
        parts.append("\n".join(f"- {line}" for line in told))
    return parts


def _missing(groups: dict[str, list[Instead]]) -> str:
    few = [DATA.get(data, data).lower() for data, campaigns in groups.items() if len(campaigns) < SEEDS]
    lines = [f"{title}: not measured at all" for data, title in DATA.items() if data not in groups]
    lines += [f"fewer than {SEEDS} seeds of {title}" for title in few]
    lines += [
        f"`{found.campaign}`: {method.name}"
        for campaigns in groups.values()
        for found in campaigns
        for method in RIVALS
        if found not in with_it([found], method.nats)
    ]
    lines += [
        "what is served, followed through the campaign: a meta-router is made once, at its end",
        "a pooled and a sequential LoRA with as many parameters as all LoRAs together",
        "merges of whole deltas (PEFT's `ties_svd` and `dare_ties_svd`)",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _of_data(data: str, campaigns: Sequence[Instead]) -> list[str]:
    first = campaigns[0]
    seeds = f"seed{'s' * (len(campaigns) > 1)} {', '.join(str(found.seed) for found in campaigns)}"
    title = DATA.get(data, data)
    rows = "; ".join(f"{sum(found.tokens):,} tokens of {len(found.tokens)} rows" for found in campaigns)
    return [
        f"### {title}",
        f"{_counted(campaigns)} ({', '.join(f'`{found.campaign}`' for found in campaigns)}, {seeds}) of "
        f"{', '.join(first.domains)} on `{first.base}`, scored on {rows}.",
        _main_table(campaigns),
        "*\\* is told the row's label, or chooses in hindsight: nobody can serve it. A label is of no use to rows that "
        "no domain owns.*",
        f"![What one would do instead, less ours](images/{figure_name(data)})",
        f"#### What it says of {title.lower()}",
        _in_words(campaigns),
        f"#### Alike, with LoRAs and with stacks: {title.lower()}",
        "The LoRAs less our stacks, chosen in the same way for the same row.",
        _alike_table(campaigns),
        f"#### Learning one domain after another: {title.lower()}",
        _continual_table(campaigns),
        _continual_words(campaigns),
        f"#### By domain and by seed: {title.lower()}",
        _domain_table(campaigns),
        "Less ours routed on rows of the domains, seed by seed:",
        _seed_table(campaigns),
    ]


def _counted(campaigns: Sequence[Instead]) -> str:
    """How many, and that one says nothing of how trainings vary."""
    if len(campaigns) == 1:
        return "**One campaign alone, so that intervals know nothing of how trainings vary**"
    return f"{len(campaigns)} campaigns"


def _named(method: Method) -> str:
    return f"{method.name} \\*" if method.told else method.name


def _main_table(campaigns: Sequence[Instead]) -> str:
    header = ["", "parameters", *itertools.chain.from_iterable((rows, "less ours") for rows in KINDS.values())]
    lines = []
    for method in (*RIVALS, *OURS, BASE):
        cells: list[object] = [_named(method), _millions(campaigns, method)]
        for kind in KINDS:
            alone = difference(campaigns, method.nats, kind)
            less = difference(campaigns, method.nats, kind, SERVED.nats)
            cells += [loss(alone.mean if alone else None), paired(less) if method is not SERVED else ""]
        lines.append([f"**{cell}**" if method is SERVED and cell else cell for cell in cells])
    return table(header, lines).replace("\\\\*", "\\*")


def _millions(campaigns: Sequence[Instead], method: Method) -> str:
    if method is BASE:
        return "0"
    counts = sorted({round(method.parameters(found) / 1e6, 1) for found in with_it(campaigns, method.nats)})
    if not counts:
        return NOT_MEASURED
    return f"{counts[0]:g} M" if len(counts) == 1 else f"{counts[0]:g} to {counts[-1]:g} M"


def _loss(value: float) -> str:
    return loss(value if math.isfinite(value) else None)


def _in_words(campaigns: Sequence[Instead]) -> str:
    """Which rivals are better than what is served, worse, or neither, for each kind of rows."""
    lines = []
    for kind, rows in KINDS.items():
        sorted_in: dict[str, list[str]] = {"better": [], "worse": [], "neither": []}
        for method in (*RIVALS, BASE):
            found = difference(campaigns, method.nats, kind, SERVED.nats)
            if found is not None:
                verdict = "better" if found.high < 0 else "worse" if found.low > 0 else "neither"
                sorted_in[verdict].append(f"{method.name} ({paired(found)})")
        told = {
            "better": "**better than ours**",
            "worse": "worse than ours",
            "neither": "not told apart from ours",
        }
        sentences = [f"{told[verdict]}: {'; '.join(names)}" for verdict, names in sorted_in.items() if names]
        if sentences:
            lines.append(f"- On **{rows}**, " + ". ".join(sentences) + ".")
    return "\n".join(lines)


def _alike_table(campaigns: Sequence[Instead]) -> str:
    lines = [
        [name, *(paired(difference(campaigns, of, kind, less)) for kind in KINDS)] for name, (of, less) in ALIKE.items()
    ]
    return table(["chosen by", *KINDS.values()], lines)


def _continual_table(campaigns: Sequence[Instead]) -> str:
    measures = ("average performance", "backward transfer", "forgetting", "forward transfer", "general text less base")

    def general(method: Method) -> str:
        return paired(difference(campaigns, method.nats, "foreign", BASE.nats))

    def average(method: Method) -> str:
        domains = campaigns[0].domains
        return _loss(sum(domain_loss(campaigns, method.nats, domain) for domain in domains) / len(domains))

    of_name = {method.name: method for method in (*RIVALS, *OURS)}
    sequential, pooled = of_name["one LoRA, domain after domain"], of_name["one LoRA on pooled data"]
    classified = of_name["a LoRA a domain, label classified"]
    own, every = of_name["ours, label told"], of_name["ours, all on"]
    moved = [paired(difference(campaigns, of, "domain")) for of in (backward, forgotten, forward)]
    drift = max((found.drift for found in campaigns if found.drift is not None), default=None)
    nothing = "0, nothing moves"
    kept = "–" if drift is None else "0 to the bit" if drift == 0 else f"at most {drift:.2g}"
    all_on = _ungated_moved(campaigns)
    lines = [
        [sequential.name, average(sequential), *moved, general(sequential)],
        [classified.name, average(classified), nothing, nothing, "–", general(classified)],
        [pooled.name, average(pooled), "–", "–", "–", general(pooled)],
        [_named(own), average(own), kept, kept, "–", "–"],
        [every.name, average(every), all_on, "–", "–", general(every)],
        [SERVED.name, average(SERVED), "not measured", "not measured", "–", general(SERVED)],
    ]
    return table(["", *measures], lines).replace("\\\\*", "\\*")


def _ungated_moved(campaigns: Sequence[Instead]) -> str:
    """Mean over domains but the last, on validation rows, of all stacks so far: after the last domain less right after
    the own one. The campaign records means, hence no interval."""
    moved = [
        found.matrix[found.domains[-1]][domain]["ungated"] - found.matrix[domain][domain]["ungated"]
        for found in campaigns
        for domain in found.domains[:-1]
    ]
    return f"{signed(sum(moved) / len(moved))} (validation rows)" if moved else "–"


def _continual_words(campaigns: Sequence[Instead]) -> str:
    moved = difference(campaigns, backward, "domain")
    general = difference(campaigns, last_stage, "foreign", BASE.nats)
    verdict = "was not measured"
    if moved is not None:
        verdict = "forgets" if moved.low > 0 else "even gains" if moved.high < 0 else "neither forgets nor gains surely"
    return (
        f"The LoRA that goes through all domains {verdict}. *Average performance* is the mean over domains. *Backward "
        "transfer*: loss of a domain's rows after the last domain less right after its own, above 0 is forgetting; "
        "*forgetting*: less the best it ever had before the last; *forward transfer*: loss right before its own domain "
        "was trained, less the base. *General text less base* is PEFT's measure of forgetting, on rows of kinds that "
        "no domain is about" + (f"; the sequential LoRA's is {paired(general)}." if general else ".")
    )


def _domain_table(campaigns: Sequence[Instead]) -> str:
    shown = [method for method in (*RIVALS, *OURS, BASE) if "hindsight" not in method.name]
    domains = campaigns[0].domains
    lines = []
    for method in shown:
        losses = [domain_loss(campaigns, method.nats, domain) for domain in domains]
        lines.append([_named(method), *map(_loss, losses), _loss(sum(losses) / len(losses))])
    return table(["", *domains, "mean"], lines).replace("\\\\*", "\\*")


def _seed_table(campaigns: Sequence[Instead]) -> str:
    lines = [
        [_named(method), *(paired(difference([found], method.nats, "domain", SERVED.nats)) for found in campaigns)]
        for method in (*RIVALS, *OURS[1:], BASE)
    ]
    header = ["", *(f"{found.campaign}, seed {found.seed}" for found in campaigns)]
    return table(header, lines).replace("\\\\*", "\\*")


def _how(campaigns: Sequence[Instead], choices: Choices) -> list[str]:
    rates = ", ".join(f"{rate} {loss(value)}" for rate, value in choices.rates.items())
    merges = "; ".join(
        "{} weight {:g}, density {:g}, the best of {} tried ({} to {})".format(
            name.upper(), *choices.merge(name), len(tried), loss(min(tried.values())), loss(max(tried.values()))
        )
        for name, tried in choices.merges.items()
    )
    edge = choices.rate in (min(map(float, choices.rates)), max(map(float, choices.rates)))
    ranks = sorted({found.rank for found in campaigns})
    lines = [
        "The campaigns are finished ones of the product (`make run`), read from their stores. A domain's LoRA takes "
        "the rows of all of its rounds, rounds that were not kept included, in the same order and batches, as many "
        "steps, with the campaign's optimizer, schedule and clipping. Its last step counts; ours choose a snapshot.",
        f"Rank {' and '.join(map(str, ranks))}: as many rank directions as the stacks of a domain that keeps all of "
        "its rounds, whose expert routers have 6 % more parameters; where rounds were not kept, stacks have fewer. The "
        "pooled and the sequential LoRA are one adapter of that rank; a fourfold rank made no difference in "
        "[CONVERGENCE](../benchmarks/CONVERGENCE.md).",
        "The pooled LoRA takes the rows of all domains shuffled, in as many batches as all domains together, with one "
        "schedule. The sequential one begins each domain with a fresh optimizer.",
        f"The learning rate is {choices.rate:g}, the best on validation rows of {', '.join(choices.rate_domains)} of "
        f"`{choices.campaign}` ({rates}"
        + ("; the edge of what was tried" if edge else "")
        + f"), the same for every LoRA and campaign; so are the merges' settings: {merges}. A weight of "
        f"{min(WEIGHTS):g} or {max(WEIGHTS):g} is the edge of what was tried. Sum and mean are "
        "exact (`cat`), TIES and DARE are PEFT's `ties` and `dare_ties`, which merge A and B each for itself. Arrow is "
        "PEFT's (three LoRAs a token, temperature 1), at every projection, no label and no classifier.",
        "No LoRA and no stack was trained on a mixed row or on general text. Our meta-router, and nothing else here, "
        "has learned from measured losses of *other* mixed rows and of general text of *other* kinds.",
        "The classifier is the one the meta-router starts from: whitened states of the base on training prompts, "
        "nearest neighbours, and the base where a prompt is far from all.",
    ]
    times = [
        [
            found.campaign,
            found.machine,
            f"{sum(found.steps.values())} steps of {found.batch}",
            f"{found.our_parameters / 1e6:.1f} M",
            duration(found.our_seconds),
            duration(sum(found.tried[f"lora:{domain}"].seconds for domain in found.domains)),
            duration(found.tried["pooled"].seconds if "pooled" in found.tried else None),
            _harness(found),
        ]
        for found in campaigns
    ]
    took = ("rounds took", "LoRAs took", "pooled took")
    header = ["campaign", "machine", "all domains", "ours", *took, "base, here − there"]
    versions = ", ".join(f"{name} {number}" for name, number in campaigns[0].versions.items()) if campaigns else ""
    return [
        "## How it was done",
        "\n".join(f"- {line}" for line in lines),
        table(header, times),
        f"{versions}. Seconds are of a machine that others used too, and rounds score, commit and upload in theirs: "
        "they say what it costs to run this, not who is faster. The last column is the mean loss of the bare base as "
        "scored for the rivals, less as the campaign recorded it: what the two harnesses differ by.",
    ]


def _harness(found: Instead) -> str:
    tokens = float(sum(found.tokens))
    return signed((float(found.nats("base").sum()) - float(found.mode("base").sum())) / tokens)
