"""What a person reads on MLflow's pages, in its Markdown: tables of versions that link to one another, and pictures
from the runs' artifacts. Pure functions of records and of where MLflow has what they are about.

Every link is relative, so that it holds on whatever address MLflow is served. MLflow's Markdown has neither widths nor
padding, and of its databases some take 5,000 characters of a description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bs_cluster.certificate import Certificate, summary
from bs_cluster.promotion import Standing
from bs_cluster.records import (
    BundleManifest,
    DomainRecord,
    Promotion,
    Retirement,
    RoundOutcome,
    StackId,
    StackManifest,
    StackRef,
)
from bs_cluster.registry.descriptions import loss
from bs_cluster.registry.evaluations import TABLE
from bs_cluster.retirement import Live

MAX_TEXT = 5000
CURVE = "figures/curve.svg"  # of a round's run
SPLITS = ("train", "validation", "sweep")  # of a domain's rows
BESIDE = 5  # other bundles whose rows a bundle's page puts beside its own
SHORT = 8  # characters of a digest that a person compares

Bundle = tuple[int, str, BundleManifest]


@dataclass(frozen=True)
class Addresses:
    """Where MLflow has things: ``runs`` by stack name, those of evaluations by the bundle's manifest (None: the
    campaign's), ``versions`` by manifest digest as (model, version). What is not there yet is named without a link."""

    campaign: str
    experiment_id: str
    runs: Mapping[str | None, str]
    versions: Mapping[str, tuple[str, str]]

    def model(self, domain: str) -> str:
        return f"[{domain}](#/models/{self.campaign}-{domain})"

    def run(self, stack: StackId | None, text: str) -> str:
        run_id = self.runs.get(stack and stack.name)
        return f"[{text}](#/experiments/{self.experiment_id}/runs/{run_id})" if run_id else text

    def version(self, digest: str, text: str) -> str:
        if digest not in self.versions:
            return text
        model, version = self.versions[digest]
        return f"[{text}](#/models/{model}/versions/{version})"

    def number(self, digest: str) -> str:
        """The version's own number, as a link to it."""
        return self.version(digest, self.versions[digest][1]) if digest in self.versions else "–"

    def stacks(self, refs: Iterable[StackRef]) -> str:
        return ", ".join(self.version(ref.manifest, ref.stack.name) for ref in refs)

    def rows(self, digest: str, text: str, beside: str | None = None) -> str:
        """The rows of a bundle, or each beside the same row of the bundle ``beside``."""
        if digest not in self.runs:
            return text
        other = f"&compareToRunUuid={self.runs[beside]}" if beside else ""
        views = f"#/experiments/{self.experiment_id}/evaluation-runs"
        return f"[{text}]({views}?selectedRunUuid={self.runs[digest]}{other})"

    def picture(self, stack: StackId | None, path: str, what: str) -> str:
        run_id = self.runs.get(stack and stack.name)
        return f"![{what}](get-artifact?path={path}&run_uuid={run_id})" if run_id else ""


@dataclass(frozen=True)
class Holding:
    """Which bundles there are, and who is served: what every page says of what it is about."""

    bundles: Sequence[Bundle]
    standing: Standing
    promotions: Sequence[Promotion]
    live: Live

    def bundles_with(self, ref: StackRef) -> list[Bundle]:
        return [bundle for bundle in self.bundles if ref in bundle[2].stacks]

    def word(self, number: int) -> str:
        """``champion`` or ``challenger`` where a bundle is that now."""
        for promotion in (self.standing.champion, self.standing.challenger):
            if promotion is not None and promotion.bundle == number:
                return promotion.alias
        return ""

    def why(self, bundle: BundleManifest) -> str:
        """What a bundle is, or was, and why: the last that was decided about it."""
        if taken := self.live.retired_of(bundle.stacks):
            return f"holds {taken[0].stack.name}, retired: {self.live.retired[taken[0]].reason}"
        decided = [promotion for promotion in self.promotions if promotion.bundle == bundle.number]
        if not decided:
            return "not decided"
        now, last = self.word(bundle.number), decided[-1]
        return f"**{now}**: {last.reason}" if now else f"was {last.alias}: {last.reason}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; each cell ends in a blank that is kept, for MLflow draws columns without a gap."""
    lines = [header, ["---"] * len(header), *rows]
    return [
        "| " + " | ".join(cell if cell == "---" else f"{cell.replace('|', '/')}&emsp;" for cell in line) + " |"
        for line in lines
    ]


def page(*blocks: str | Sequence[str]) -> str:
    """Blocks with empty lines between; where it is too long, a table's last rows are left out, and said so."""
    parts = [block if isinstance(block, str) else list(block) for block in blocks if block]
    while True:
        text = "\n\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)
        tables = [part for part in parts if not isinstance(part, str) and len(part) > 3]
        if len(text) <= MAX_TEXT or not tables:
            return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
        longest = max(tables, key=len)
        cells = longest[0].count("|") - 1
        del longest[-2 if longest[-1].startswith("| …") else -1 :]
        longest.append("| … |" + " |" * (cells - 1))


# A domain


def domain_page(
    domain: str,
    rounds: Sequence[tuple[StackRef, StackManifest]],
    champion: str | None,
    record: DomainRecord | None,
    gone: Retirement | None,
    holding: Holding,
    at: Addresses,
) -> str:
    """The registered model of a domain, its newest round first: ``rounds`` are all that were ever committed,
    ``champion`` the manifest of the one that is, ``record`` the closing that is in force."""
    campaign = at.run(None, at.campaign)
    if gone is not None:
        head = (
            f"Domain **{domain}** was removed from campaign {campaign} on {gone.when[:10]}: {gone.reason}. Its "
            "versions stay as history, none of them is champion."
        )
    elif record is None:
        head = f"Domain **{domain}** of campaign {campaign}: a version per committed round. Still training."
    else:
        counts = ", ".join(f"{record.data_counts[split]} {split}" for split in SPLITS if split in record.data_counts)
        head = (
            f"Domain **{domain}**, number {record.position + 1} in the curriculum of campaign {campaign}: "
            f"{loss(record.base_loss)} on the base → **{loss(record.isolated)}** with its own stacks alone, nats per "
            f"completion token on all its validation rows. Rows: {counts or 'not counted'}."
        )
    rows = [(ref.stack.round, _round_row(ref, manifest, champion, holding, at)) for ref, manifest in rounds]
    rejected = [outcome for outcome in record.rounds if not outcome.committed] if record else []
    rows += [(outcome.stack.round, _rejected_row(outcome, at)) for outcome in rejected]
    rows.sort(key=lambda row: -row[0])
    header = ("version", "round", "before → after", "gain ± error", "curve", "steps", "data", "beside", "bundles", "")
    return page(
        head,
        "A version is the domain with all rounds up to that one. Before and after are of the rows that decide about a "
        "commit; ± is a standard error; the curve is of the rows that select a snapshot.",
        table(header, [row for _, row in rows]),
    )


def _round_row(
    ref: StackRef, manifest: StackManifest, champion: str | None, holding: Holding, at: Addresses
) -> list[str]:
    metrics = manifest.metrics
    retired = holding.live.retired.get(ref)
    return [
        at.number(ref.manifest),
        at.run(ref.stack, ref.stack.name),
        _went(metrics, manifest.objective),
        _gain(metrics.get("gain"), metrics.get("gain_error")),
        at.picture(ref.stack, CURVE, "learning curve"),
        f"{metrics['steps']:.0f}" if "steps" in metrics else "–",
        manifest.data_fingerprint[:SHORT],
        at.stacks(_beside(manifest)) or "the base alone",
        _bundle_links(holding.bundles_with(ref), at),
        f"retired: {retired.reason}" if retired else "**champion**: the newest" if ref.manifest == champion else "",
    ]


def _rejected_row(outcome: RoundOutcome, at: Addresses) -> list[str]:
    return [
        "–",
        at.run(outcome.stack, outcome.stack.name),
        _change(outcome.val_before, outcome.val_after, outcome.objective),
        _gain(outcome.gain, outcome.gain_error),
        "",
        str(outcome.steps),
        "",
        "",
        "",
        f"rejected: {outcome.reason}",
    ]


def stack_page(
    ref: StackRef, manifest: StackManifest, own: Sequence[StackRef], store_uri: str, holding: Holding, at: Addresses
) -> str:
    """A version of a domain; ``own`` are the rounds in it."""
    metrics, domain = manifest.metrics, ref.stack.domain
    together = "this round alone" if len(own) == 1 else f"rounds {own[0].stack.round} to {ref.stack.round} together"
    confined = f"directions outside basis {manifest.basis[:SHORT]}" if manifest.basis else "nothing: it is not confined"
    size = sum(entry.size for entry in manifest.files) / 1e6
    merged = [("holds", _holds(metrics))] if "merged_rounds" in metrics else []
    facts = [
        *merged,
        ("the rows that decide", _went(metrics, manifest.objective)),
        ("gain ± error", f"{_gain(metrics.get('gain'), metrics.get('gain_error'))} on {_count(metrics, 'rows')} rows"),
        ("steps", _count(metrics, "steps")),
        ("made by", f"run {at.run(ref.stack, ref.stack.name)} of campaign {at.run(None, at.campaign)}"),
        ("trained beside", at.stacks(_beside(manifest)) or "the base alone"),
        ("confined to", confined),
        ("committed before it", at.stacks(manifest.parents) or "nothing"),
        ("served in", _bundle_links(holding.bundles_with(ref), at) or "no bundle yet"),
        ("base", f"{manifest.base.model} ({manifest.base.quantization}), {manifest.base.digest[:SHORT]}"),
        ("data", manifest.data_fingerprint[:SHORT]),
        ("settings", manifest.config_digest[:SHORT]),
        ("code", manifest.code_version),
    ]
    return page(
        f"{at.model(domain)} after round {ref.stack.round}, {together}. {at.picture(ref.stack, CURVE, 'curve')}",
        f'`mlflow.pyfunc.load_model("models:/{at.campaign}-{domain}/{at.versions[ref.manifest][1]}").predict("…")` '
        "answers with it where `bs_cluster` is installed, the store can be reached and a bundle holds the round. The "
        f"round's weights ({size:.1f} MB, a PEFT adapter) stay in the store `{store_uri}`, manifest "
        f"`{ref.manifest[:SHORT]}`; the domain as one adapter: `bs_cluster export --domain {domain}`.",
        table(("", ""), facts),
    )


def _holds(metrics: Mapping[str, float]) -> str:
    """Of a stack that took the place of rounds: what that changed."""
    return (
        f"{metrics['merged_rounds']:.0f} rounds, which lose "
        f"{metrics['merged_change']:+.3f} ± {metrics['merged_change_error']:.3f} nats per token by it; "
        f"{metrics['merged_missed']:.1%} of what they write at a site is missed"
    )


def stack_note(ref: StackRef, manifest: StackManifest, at: Addresses) -> str:
    """The description of a committed round's run."""
    metrics = manifest.metrics
    return (
        f"Round {ref.stack.round} of {at.model(ref.stack.domain)}: "
        f"{_went(metrics, manifest.objective)} on the rows that decide. "
        f"Committed as {at.version(ref.manifest, f'version {at.versions[ref.manifest][1]}')}. "
        f"{at.picture(ref.stack, CURVE, 'learning curve')}"
    )


def rejected_note(outcome: RoundOutcome, at: Addresses) -> str:
    """The description of the run of a round that was turned away."""
    return (
        f"Round {outcome.stack.round} of {at.model(outcome.stack.domain)}: "
        f"{_change(outcome.val_before, outcome.val_after, outcome.objective)} on the rows that decide. "
        f"Rejected: {outcome.reason}."
    )


# Bundles


def bundles_page(certificates: Mapping[str, Certificate | None], holding: Holding, at: Addresses) -> str:
    """The registered model of a campaign: its bundles, newest first, and who is served and why."""
    champion = holding.standing.champion
    served = f"bundle {at.version(champion.manifest, str(champion.bundle))}" if champion else "nothing yet"
    header = ("version", "bundle", "stacks", "routed loss", "base", "regret", "right answers", "certificate", "")
    rows = [
        [
            at.number(digest),
            str(number),
            str(len(bundle.stacks)),
            loss(bundle.metrics.get("loss/routed")),
            loss(bundle.metrics.get("loss/base")),
            loss(bundle.metrics.get("regret/router")),
            at.rows(digest, _right(bundle.metrics)),
            _certified(certificates.get(digest)),
            holding.why(bundle),
        ]
        for number, digest, bundle in reversed(holding.bundles)
    ]
    return page(
        f"Campaign {at.run(None, at.campaign)} as one model that answers prompts. Served, as `champion`: {served}. "
        "Losses are nats per completion token on the sweep rows of all domains; regret is what routing loses against "
        "the oracle on them; right answers are the base's → the routed ones.",
        table(header, rows),
    )


def bundle_page(
    digest: str,
    bundle: BundleManifest,
    certificate: Certificate | None,
    store_uri: str,
    holding: Holding,
    at: Addresses,
) -> str:
    """A version of the campaign."""
    stacks = {domain: [ref for ref in bundle.stacks if ref.stack.domain == domain] for domain in bundle.domains}
    rows = [[at.model(domain), at.stacks(refs), _routed(bundle, domain)] for domain, refs in stacks.items()]
    metrics = bundle.metrics
    return page(
        f"Bundle {bundle.number}: `{bundle.base.model}` with {len(bundle.stacks)} stacks and the meta-router that "
        f"gates them, of campaign {at.run(None, at.campaign)}. {_sentence(holding.why(bundle))}",
        at.picture(None, lineage_path(bundle), "what it is made of"),
        f"All domains' sweep rows: {loss(metrics.get('loss/base'))} on the base → "
        f"**{loss(metrics.get('loss/routed'))}** routed, {loss(metrics.get('loss/oracle'))} the oracle; right answers "
        f"{_right(metrics)}. Certificate: {_certified(certificate)}.",
        _rows_of(digest, holding, at),
        f'`mlflow.pyfunc.load_model("models:/{at.campaign}/{at.versions[digest][1]}").predict("…")` answers where '
        f"`bs_cluster` is installed and the store `{store_uri}` can be reached; manifest `{digest[:SHORT]}`, base "
        f"`{bundle.base.digest[:SHORT]}`, settings `{bundle.config_digest[:SHORT]}`, code {bundle.code_version}.",
        table(("domain", "stacks", "routed loss"), rows),
    )


def evaluation_note(digest: str, bundle: BundleManifest, holding: Holding, at: Addresses) -> str:
    """The description of the run that holds a bundle's rows."""
    return (
        f"The sweep rows that {at.version(digest, f'bundle {bundle.number}')} of campaign {at.run(None, at.campaign)} "
        f"was judged on. {_rows_of(digest, holding, at)}"
    )


def _rows_of(digest: str, holding: Holding, at: Addresses) -> str:
    if digest not in at.runs:
        return ""
    others = [(number, other) for number, other, _ in reversed(holding.bundles) if other != digest and other in at.runs]
    beside = ", ".join(at.rows(digest, f"bundle {number}", other) for number, other in others[:BESIDE])
    table = f"[table](#/experiments/{at.experiment_id}/runs/{at.runs[digest]}/artifacts/{TABLE})"
    answers = f"Answers {at.rows(digest, 'row by row')}{f', beside those of {beside}' if beside else ''}"
    return f"{answers}; all rows with their losses as a {table}."


def campaign_head(bundle: BundleManifest, holding: Holding, at: Addresses) -> str:
    """What stands before the report on the campaign's run: the ways to everything else."""
    digests = {number: digest for number, digest, _ in holding.bundles}
    champion = holding.standing.champion
    served = at.version(champion.manifest, f"bundle {champion.bundle}") if champion else "no bundle"
    domains = " · ".join(at.model(domain) for domain in bundle.domains)
    return (
        f"Served: {served}. Newest: {at.version(digests[bundle.number], f'bundle {bundle.number}')}. "
        f"Domains: {domains}. The report with its figures: `report/report.html` under Artifacts.\n\n"
        f"{at.picture(None, lineage_path(bundle), 'what the newest bundle is made of')}\n\n"
    )


def lineage_path(bundle: BundleManifest) -> str:
    return f"lineage/bundle_{bundle.number}.svg"


def _bundle_links(bundles: Iterable[Bundle], at: Addresses) -> str:
    return ", ".join(at.version(digest, f"bundle {number}") for number, digest, _ in bundles)


def _beside(manifest: StackManifest) -> list[StackRef]:
    """The stacks that fired while it trained, as the refs among its parents."""
    return [ref for ref in manifest.parents if ref.stack in manifest.context]


def _change(before: float | None, after: float | None, objective: str) -> str:
    if objective == "sft":
        return f"{loss(before)} → **{loss(after)}** nats per token"
    shares = ["–" if share is None else f"{100 * share:.1f} %" for share in (before, after)]
    return f"{shares[0]} → **{shares[1]}** of the {'pairs' if objective == 'dpo' else 'prompts'}"


def _went(metrics: Mapping[str, float], objective: str) -> str:
    return _change(metrics.get("val_before"), metrics.get("val_after"), objective)


def _gain(gain: float | None, error: float | None) -> str:
    return "–" if gain is None or error is None else f"{gain:.3f} ± {error:.3f}"


def _count(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.0f}" if name in metrics else "–"


def _routed(bundle: BundleManifest, domain: str) -> str:
    return loss(bundle.metrics.get(f"loss/routed/{domain}"))


def _right(metrics: Mapping[str, float]) -> str:
    base, routed = metrics.get("accuracy/base"), metrics.get("accuracy/routed")
    return "–" if base is None or routed is None else f"{base:.0%} → {routed:.0%}"


def _certified(certificate: Certificate | None) -> str:
    return "none" if certificate is None else summary(certificate.statements)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if not text.startswith("**") else f"{text}."
