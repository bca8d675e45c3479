"""The campaign's last words: a report, and a bundle that one can serve."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from bs_cluster import __version__
from bs_cluster.answer_file import ANSWERS, write_answers
from bs_cluster.basis import Basis
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.certify import EVIDENCE, certificate_of
from bs_cluster.campaign.measured import Measured
from bs_cluster.campaign.promote import judge
from bs_cluster.certificate import CERTIFICATE, prove
from bs_cluster.config.identity import bundle_digest
from bs_cluster.config.parse import to_yaml
from bs_cluster.failpoints import failpoint
from bs_cluster.promotion import LOSSES, write_losses
from bs_cluster.records import (
    EXAMPLES,
    SCHEMA_VERSION,
    BeforeAfter,
    BundleManifest,
    StackId,
    StackManifest,
)
from bs_cluster.report.inputs import History, ReportInputs, RouterFacts
from bs_cluster.report.record import Report
from bs_cluster.report.stack_figure import draw_stack
from bs_cluster.retirement import told_today
from bs_cluster.router.files import Reading, save_router
from bs_cluster.router.regret import RoutingReport
from bs_cluster.store.store import Store

ROWS_NOTE = "sweep rows, which no stack was trained or selected on, each judged by a meta-router that never saw it"


def report_inputs(campaign: Campaign, measured: Measured, timing: Mapping[str, float]) -> ReportInputs:
    """Everything measured, gathered for the report."""
    config, store, domains = campaign.config, campaign.store, campaign.domains
    rows, routing, answers = measured.rows, measured.routing, measured.answers
    records = store.domains()
    manifests = [manifest for _, manifest in store.stacks()]
    tokens = {domain: [row.completion_length for row in rows[domain].validation] for domain in domains}
    stacks = [ref for ref, _ in store.stacks()]
    served, decision = judge(store, next_number(store), stacks, routing.losses, config.promotion)
    return ReportInputs(
        campaign=config.campaign,
        config_yaml=to_yaml(config),
        base=manifests[0].base,
        domains=domains,
        records=told_today(records),
        histories={manifest.stack.name: _history(store, manifest) for manifest in manifests},
        aligned_answers={manifest.stack.name: _examples(store, manifest) for manifest in manifests},
        losses=routing.losses,
        rows_note=ROWS_NOTE,
        isolated_row_losses=measured.isolated,
        proofs=prove(records, measured.isolated, tokens, measured.probes),
        overlap=claimed_overlap(store),
        router=router_facts(routing.report),
        gates=routing.gates,
        served=served,
        decision=decision,
        answers=answers.judged,
        unasked=answers.unasked,
        answer_tokens=answers.tokens,
        outcomes=routing.outcomes,
        sweep=routing.sweep,
        timing=timing,
        data_counts={domain: rows[domain].counts for domain in domains},
        environment=versions_and_machine(),
    )


def router_facts(report: RoutingReport) -> RouterFacts:
    own = report.kinds["domain"]
    return RouterFacts(accuracy=own.accuracy, best_single=report.best_single["domain"], notes=report.notes)


def claimed_overlap(store: Store) -> dict[str, dict[str, float]]:
    """Mean over sites of the overlap between two domains' claimed directions."""
    claims = {r.domain: Basis.from_bytes(store.get_bytes(r.basis)) for r in store.domains() if r.basis}
    return {a: {b: claims[a].overlap(claims[b]) for b in claims} for a in claims}


def _history(store: Store, manifest: StackManifest) -> History:
    lines = store.get_bytes(manifest.file("history.jsonl").sha256).decode().splitlines()
    return [json.loads(line) for line in lines]


def _examples(store: Store, manifest: StackManifest) -> list[BeforeAfter]:
    if not any(entry.name == EXAMPLES for entry in manifest.files):
        return []
    lines = store.get_bytes(manifest.file(EXAMPLES).sha256).decode().splitlines()
    return [BeforeAfter.from_dict(json.loads(line)) for line in lines]


def stack_figures(store: Store, histories: Mapping[str, History], directory: Path) -> dict[StackId, Path]:
    """Draws each committed stack's figure; the folder to log per stack."""
    folders = {}
    for ref, _ in store.stacks():
        folder = directory / ref.stack.name
        draw_stack(ref.stack.name, histories[ref.stack.name], folder / "learning.png")
        folders[ref.stack] = folder
    return folders


def versions_and_machine() -> dict[str, str]:
    """Machine and versions, as far as numbers depend on them."""
    resources = ray.cluster_resources()
    found = {
        "machine": f"{platform.machine()}, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs",
        "python": platform.python_version(),
        "bs_cluster": __version__,
    }
    names = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "ray", "trl", "mlflow")
    return found | {name: version(name) for name in names}


def next_number(store: Store) -> int:
    return len(store.bundles()) + 1


def write_outcomes(tables: Iterable[pa.Table], path: Path) -> None:
    """One Parquet file of them all, a table in memory at a time."""
    writer = None
    for table in tables:
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def commit_bundle(
    campaign: Campaign, measured: Measured, inputs: ReportInputs, report: Report, directory: Path
) -> tuple[int, BundleManifest]:
    """Stores router, outcomes, losses, answers, config, report and certificate as blobs and commits the bundle that
    names them.

    ``inputs`` are what the certificate states as well as the report, which ``directory`` holds already. Returns the
    bundle's number and manifest.
    """
    config, store, domains = campaign.config, campaign.store, campaign.domains
    routing = measured.routing
    refs = tuple(ref for ref, _ in store.stacks())
    base = store.stacks()[0][1].base
    reading = Reading(
        domains=domains,
        input_size=routing.input_size,
        mid_weight=config.router.mid_weight,
        max_prompt_length=config.router.max_prompt_length,
        base=base.digest,
    )
    save_router(directory, routing.served, reading)
    write_outcomes(routing.outcomes, directory / "outcomes.parquet")
    (directory / LOSSES).write_bytes(write_losses(routing.losses))
    (directory / ANSWERS).write_bytes(write_answers(measured.answers.judged))
    (directory / "unowned.parquet").write_bytes(routing.unowned.to_parquet())
    (directory / "routing.json").write_text(json.dumps(routing.report.to_dict(), indent=2))
    (directory / "campaign.yaml").write_text(to_yaml(config))
    names = (*EVIDENCE, ANSWERS, "report.json", "report.md", "report.html")
    number = next_number(store)
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        campaign=config.campaign,
        number=number,
        base=base,
        domains=domains,
        stacks=refs,
        files=tuple(store.put_file(directory / name, name) for name in names),
        metrics=report.key_metrics,
        config_digest=bundle_digest(config),
        code_version=__version__,
    )
    certificate = certificate_of(store, manifest, config, routing.losses, inputs.proofs, inputs.served)
    entry = store.put_bytes(CERTIFICATE, certificate.to_json())
    manifest = dataclasses.replace(manifest, files=(*manifest.files, entry))
    failpoint("bundle.commit")
    store.commit_bundle(manifest)
    return number, manifest
