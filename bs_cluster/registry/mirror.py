"""One campaign in MLflow: a parent run, a child run per round, a registered model per domain and one for bundles.

The store decides, MLflow shows. There is no outbox on disk, because it would only repeat what the store knows: what is
left to register is what the store's refs name and MLflow, asked by manifest digest, does not have. ``sync`` works that
off in order. So MLflow may be away while a campaign trains, or be wiped and rebuilt, and the end is the same.

One writer: the campaign's driver. Every method raises ``RegistryUnavailable`` when MLflow is away, at once for a
while after it was found to be, and ``RegistryError`` when it refuses.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow.entities import Run

from bs_cluster.config.parse import to_yaml
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import RegistryError
from bs_cluster.failpoints import failpoint
from bs_cluster.records import (
    CHALLENGER,
    CHAMPION,
    BundleManifest,
    DomainRecord,
    ModeLosses,
    StackId,
    StackManifest,
    StackRef,
    canonical_json,
    sha256_hex,
)
from bs_cluster.registry import descriptions, drawings, evaluations, pages
from bs_cluster.registry.artifacts import write_bundle, write_domain
from bs_cluster.registry.connection import Connection
from bs_cluster.registry.held import CONFIG, Committed, Held
from bs_cluster.registry.parameters import bundle_parameters, campaign_parameters, round_parameters
from bs_cluster.registry.runs import DATASET_DIGEST, Point, Runs
from bs_cluster.registry.versions import Entry, Versions
from bs_cluster.store import Store

REPORT_TEXT = "report.md"
REPORTS = (REPORT_TEXT, "report.html", "report.json")
MIRRORED = "mirrored"  # tag of the campaign's run: digests of the closings and of the report that it shows, as JSON
MARK = 16  # characters of a digest there
Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class SyncReport:
    """What one ``sync`` brought to MLflow that was not there: versions, rejected rounds, closed domains, bundles."""

    stacks: tuple[StackId, ...]
    rejected: tuple[StackId, ...]
    domains: tuple[str, ...]
    bundles: tuple[int, ...]
    seconds: float


class Registry:
    """``tracking_uri`` is ``http(s)://…`` or ``sqlite:////absolute/path.db``, whose artifacts go beside it. ``say`` is
    given what a person should know: that a ruined database was moved aside."""

    def __init__(self, tracking_uri: str, campaign: str, experiment: str, say: Callable[[str], None] = print):
        self.tracking_uri, self.campaign, self.experiment = tracking_uri, campaign, experiment
        self._connection = Connection(tracking_uri, say)
        self._runs = Runs(self._connection, campaign, experiment)
        self._versions = Versions(self._connection, campaign)

    # Live: what a campaign shows while it runs

    def open_campaign(self, config: CampaignConfig) -> None:
        """Find or create the campaign's run, mark it running and show its settings. What a process that died left
        running is marked killed. To be followed by ``end_campaign``, however the process ends."""
        self._runs.refresh()
        with self._fresh_after_failure():
            self._show_config(self._runs.take(), config)

    def _show_config(self, run: Run, config: CampaignConfig) -> None:
        """Parameters where they differ from the defaults; all of them as ``campaign.yaml``."""
        self._runs.log_params(run, campaign_parameters(config), descriptions.flatten(config.model_dump(mode="json")))
        self._runs.log_text(run, to_yaml(config), CONFIG)

    def end_campaign(self, status: Status) -> None:
        """Mark the campaign's run, and every run of a round that still shows as running, as ended."""
        with self._fresh_after_failure():
            self._runs.end_all(status)

    def settle(self) -> None:
        """Let no run of the campaign show as running that no process keeps: one whose process died was killed, and one
        that ``sync`` made of what the store holds is finished."""
        with self._fresh_after_failure():
            self._runs.settle()

    def round_started(self, stack: StackId, config: CampaignConfig) -> None:
        """Find or create the run of a round, mark it running and show its hyperparameters. A round whose end is
        mirrored already stays finished: events lag where MLflow is slow."""
        with self._fresh_after_failure():
            run = self._runs.stack(stack)
            self._runs.log_params(run, round_parameters(config, stack))
            self._runs.start(run)

    def log_metrics(self, stack: StackId | None, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics to the run of a round, or with None to the campaign's; what it shows at that step stays."""
        with self._fresh_after_failure():
            self._runs.log_points(self._runs.of(stack), _at(step, metrics))

    def log_figures(self, stack: StackId | None, directory: Path) -> None:
        """Upload a folder of figures to the run of a round, or with None to the campaign's."""
        with self._fresh_after_failure():
            self._runs.log_folder(self._runs.of(stack), directory, "figures")

    def log_report(self, directory: Path) -> None:
        """Upload the campaign's report with its figures. Its words and numbers come from the bundle, by ``sync``."""
        with self._fresh_after_failure():
            self._runs.log_folder(self._runs.campaign(), directory, "report")

    def log_evaluation(self, bundle: int, metrics: Mapping[str, float], directory: Path) -> None:
        """Show what a bundle reached on tasks, at its number as step, and upload the files. What it reached before is
        kept; the run shows the newest."""
        with self._fresh_after_failure():
            run = self._runs.campaign()
            self._runs.log_again(run, _at(bundle, metrics))
            self._runs.log_folder(run, directory, "evaluation")

    @contextmanager
    def _fresh_after_failure(self) -> Iterator[None]:
        """After a failure look runs up again: MLflow may come back without those we knew."""
        try:
            yield
        except RegistryError:
            self._runs.refresh()
            raise

    # Committed: what the store decided

    def sync(self, store: Store) -> SyncReport:
        """Bring MLflow up to the store: runs with their curves, versions, domains, bundles, aliases. Idempotent; what
        an interrupted sync left half done is finished. The report names only what was not there before."""
        if store.campaign != self.campaign:
            raise RegistryError(f"the registry of {self.campaign!r} was given the store of {store.campaign!r}")
        started = time.monotonic()
        self._connection.try_again()
        self._runs.refresh()
        self._versions.refresh(self._runs.experiment_id())
        held = Held.of(store)
        stacks = [ref.stack for ref, manifest in held.stacks if self._mirror_stack(held, ref, manifest)]
        closed = [record for record in held.domains if self._mirror_domain(held, record)]
        bundles = [number for number, digest, manifest in held.bundles if self._mirror_bundle(held, digest, manifest)]
        self._mirror_retired(held)
        served = held.store.standing()
        newest = {f"{self.campaign}-{domain}": manifest for domain, manifest in held.newest.items()}
        self._versions.point(newest, {CHAMPION: served.champion, CHALLENGER: served.challenger})
        for _, digest, manifest in held.bundles:
            self._mirror_evaluation(held, digest, manifest)
        holding = pages.Holding(held.bundles, served, held.store.promotions(), held.live)
        self._mirror_report(held, holding)
        self._mirror_pages(held, holding)
        return SyncReport(
            stacks=tuple(stacks),
            rejected=tuple(outcome.stack for record in closed for outcome in record.rounds if not outcome.committed),
            domains=tuple(record.domain for record in closed),
            bundles=tuple(bundles),
            seconds=time.monotonic() - started,
        )

    def _mirror_stack(self, held: Held, ref: StackRef, manifest: StackManifest) -> bool:
        """A stack's run and version, which is its domain with all rounds up to it."""
        if self._versions.has(ref.manifest):
            self._runs.finish(ref.stack)
            return False
        run, config = self._runs.stack(ref.stack), held.config_of(manifest)
        if config is not None:
            self._runs.log_params(run, round_parameters(config, ref.stack))
        tags = descriptions.stack_tags(manifest, ref.manifest)
        if run.data.tags.get("manifest") != ref.manifest:
            points = held.history(manifest)
            if curve := _curve(points):
                self._runs.log_text(run, drawings.sparkline(curve), pages.CURVE)
            self._runs.log_points(run, points, tags)
        self._runs.end(run)
        entry = Entry(
            model=f"{self.campaign}-{ref.stack.domain}",
            name=ref.stack.name,
            kind="stack",
            digest=ref.manifest,
            order=ref.stack.round,
            experiment_id=run.info.experiment_id,
            run_id=run.info.run_id,
            tags={key: value for key, value in tags.items() if key != "committed"},
            params=dict(run.data.params),
            metrics=descriptions.stack_metrics(manifest),
            step=int(manifest.metrics.get("steps", 0)),
            dataset=(ref.stack.domain, manifest.data_fingerprint[:DATASET_DIGEST]),
        )
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "model"
            failpoint("registry.mirror")
            write_domain(model, Path(scratch), held.store, _rounds_to((ref, manifest), held.stacks))
            self._versions.register(entry, model)
        return True

    def _mirror_domain(self, held: Held, record: DomainRecord) -> bool:
        campaign, mark = self._runs.campaign(), {f"domain {record.domain}": record.digest()[:MARK]}
        if mark.items() <= _marks(campaign).items():
            for outcome in record.rounds:
                self._runs.finish(outcome.stack)
            return False
        rows = (record.domain, record.data_fingerprint, record.data_counts)
        for outcome in record.rounds:
            run = self._runs.stack(outcome.stack)
            self._runs.log_dataset(run, *rows, "training")
            metrics = descriptions.outcome_metrics(outcome)
            if outcome.manifest is not None:  # the version has said most of it
                told = descriptions.stack_metrics(held.store.manifest(outcome.manifest))
                metrics = {key: value for key, value in metrics.items() if key not in told}
            self._runs.log_points(run, _at(outcome.steps, metrics))
            if not outcome.committed:
                self._runs.tag(run, descriptions.outcome_tags(outcome))
                self._runs.end(run)
        self._runs.log_dataset(campaign, *rows, "training")
        # The mark comes last: it says that all of the above is done.
        self._mark(campaign, mark, _at(record.position, descriptions.domain_metrics(record)))
        return True

    def _mirror_bundle(self, held: Held, digest: str, manifest: BundleManifest) -> bool:
        if self._versions.has(digest):
            return False
        run, certificate, losses = self._runs.campaign(), held.certificates[digest], held.losses(manifest)
        dataset = None if losses is None else self._log_sweep(run, losses)
        config = held.config(manifest)
        if config is not None and not run.data.params:  # MLflow was wiped since
            self._show_config(run, config)
        self._runs.log_text(run, drawings.lineage(manifest, _own_gates(losses)), pages.lineage_path(manifest))
        entry = Entry(
            model=self.campaign,
            name=f"{self.campaign}_bundle_{manifest.number}",
            kind="bundle",
            digest=digest,
            order=manifest.number,
            experiment_id=run.info.experiment_id,
            run_id=run.info.run_id,
            tags=descriptions.bundle_tags(manifest, digest) | descriptions.certificate_tags(certificate),
            params={} if config is None else bundle_parameters(config),
            metrics=descriptions.bundle_metrics(manifest),
            step=manifest.number,
            dataset=dataset,
        )
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "model"
            write_bundle(model, Path(scratch), held.store, digest, certificate)
            self._versions.register(entry, model)
        return True

    def _mirror_evaluation(self, held: Held, digest: str, manifest: BundleManifest) -> None:
        """The rows that a bundle was judged on, as a run in MLflow's evaluation views. The version's tag comes last: it
        says that all of it is there."""
        if self._versions.is_evaluated(digest) or (losses := held.losses(manifest)) is None:
            return
        run, model_id = self._runs.evaluation(digest, manifest.number), self._versions.model_id(digest)
        rows = evaluations.rows_of(losses, held.answers(manifest))
        self._log_sweep(run, losses)
        if model_id is not None:
            self._runs.log_model(run, model_id)
        self._runs.log_points(run, _at(manifest.number, descriptions.bundle_metrics(manifest)))
        self._runs.log_table(run, evaluations.table(rows), evaluations.TABLE)
        self._runs.log_traces(run, evaluations.traces(rows, run.info, model_id))
        self._runs.end(run)
        self._versions.evaluated(digest, run.info.run_id)

    def _log_sweep(self, run: Run, losses: ModeLosses) -> tuple[str, str]:
        """Show that a run is about the rows of ``losses``; their dataset's name and digest."""
        name, fingerprint = f"{self.campaign} sweep", _fingerprint(losses)
        self._runs.log_dataset(run, name, fingerprint, _counts(losses), "evaluation")
        return name, fingerprint[:DATASET_DIGEST]

    def _mirror_retired(self, held: Held) -> None:
        """What was taken out stays where it is and says so, and why: rounds, and the bundles that held them."""
        for ref, retirement in held.live.retired.items():
            self._versions.retire(ref.manifest, retirement.reason)
        for _, digest, manifest in held.bundles:
            if taken := held.live.retired_of(manifest.stacks):
                why = held.live.retired[taken[0]].reason
                self._versions.retire(digest, f"it holds {taken[0].stack.name}: {why}")

    def _mirror_report(self, held: Held, holding: pages.Holding) -> None:
        """Show the report of the newest bundle that holds nothing retired: its files, and its text as the run's
        description. Its numbers are the version's."""
        bundles = [bundle for bundle in held.bundles if not held.live.retired_of(bundle[2].stacks)]
        if not bundles:
            return
        _, digest, manifest = bundles[-1]
        run = self._runs.campaign()
        blobs = {entry.name: entry.sha256 for entry in manifest.files if entry.name in REPORTS}
        if REPORT_TEXT not in blobs:
            return
        text = held.store.get_bytes(blobs[REPORT_TEXT]).decode()
        if _marks(run).get("report") != digest[:MARK]:
            with tempfile.TemporaryDirectory() as folder:
                for name, sha256 in blobs.items():
                    (Path(folder) / name).write_bytes(held.store.get_bytes(sha256))
                self._runs.log_folder(run, Path(folder), "report")
        head = pages.campaign_head(manifest, holding, self._addresses())
        self._runs.describe(None, head + text)
        self._mark(run, {"report": digest[:MARK]})

    def _mirror_pages(self, held: Held, holding: pages.Holding) -> None:
        """The words of every page. What reads so already costs nothing."""
        at, store = self._addresses(), held.store
        closings = {record.domain: record for record in held.domains}
        own: dict[str, Committed] = {}
        for ref, manifest in held.stacks:
            own.setdefault(ref.stack.domain, []).append((ref, manifest))
        for domain in {**own, **held.live.gone}:
            rounds, record, gone = own.get(domain, []), closings.get(domain), held.live.gone.get(domain)
            text = pages.domain_page(domain, rounds, held.newest.get(domain), record, gone, holding, at)
            self._versions.describe(f"{self.campaign}-{domain}", text)
        for ref, manifest in held.stacks:
            rounds = [pair[0] for pair in _rounds_to((ref, manifest), held.stacks)]
            page = pages.stack_page(ref, manifest, rounds, store.uri, holding, at)
            self._versions.describe_version(ref.manifest, page)
            self._runs.describe(ref.stack.name, pages.stack_note(ref, manifest, at))
        for outcome in (outcome for record in held.domains for outcome in record.rounds if not outcome.committed):
            self._runs.describe(outcome.stack.name, pages.rejected_note(outcome, at))
        for _, digest, manifest in held.bundles:
            page = pages.bundle_page(digest, manifest, held.certificates[digest], store.uri, holding, at)
            self._versions.describe_version(digest, page)
            self._runs.describe(digest, pages.evaluation_note(digest, manifest, holding, at))
        if held.bundles:
            self._versions.describe(self.campaign, pages.bundles_page(held.certificates, holding, at))

    def _addresses(self) -> pages.Addresses:
        return pages.Addresses(self.campaign, self._runs.experiment_id(), self._runs.ids(), self._versions.addresses())

    def _mark(self, campaign: Run, marks: Mapping[str, str], points: Iterable[Point] = ()) -> None:
        """Say that something of the store is shown, with the last of ``points``."""
        told = json.dumps({**_marks(campaign), **marks}, sort_keys=True)
        if campaign.data.tags.get(MIRRORED) != told:
            self._runs.log_points(campaign, points, {MIRRORED: told})


def _marks(campaign: Run) -> dict[str, str]:
    return json.loads(campaign.data.tags.get(MIRRORED, "{}"))


def _rounds_to(last: tuple[StackRef, StackManifest], held: Committed) -> Committed:
    """The rounds of a stack's domain that it was trained on, and itself: what the domain was when it was committed."""
    ref, manifest = last
    return [pair for pair in held if pair[0].stack.domain == ref.stack.domain and pair[0] in (*manifest.parents, ref)]


def _fingerprint(losses: ModeLosses) -> str:
    """The same for two bundles that were judged on the same rows, cut to as many tokens."""
    return sha256_hex(canonical_json([losses.row_ids, losses.tokens]))


def _counts(losses: ModeLosses) -> dict[str, int]:
    return dict(Counter(losses.owners))


def _own_gates(losses: ModeLosses | None) -> dict[str, float]:
    """By domain its mean gate on its own rows."""
    if losses is None:
        return {}
    own = {
        domain: [gate for gate, owner in zip(gates, losses.owners, strict=True) if owner == domain]
        for domain, gates in losses.gates.items()
    }
    return {domain: sum(gates) / len(gates) for domain, gates in own.items() if gates}


def _curve(points: Sequence[Point]) -> list[float]:
    """The curve that a round is known by: of the rows that select, where it was measured twice, else of its batches."""
    for name in ("selection_loss", "loss"):
        if len(found := [value for _, key, value in points if key == name]) > 1:
            return found
    return []


def _at(step: int, metrics: Mapping[str, float]) -> list[Point]:
    return [(step, key, value) for key, value in metrics.items()]
