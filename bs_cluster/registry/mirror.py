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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bs_cluster.certificate import CERTIFICATE, Certificate
from bs_cluster.errors import RegistryError
from bs_cluster.failpoints import failpoint
from bs_cluster.records import (
    CHALLENGER,
    CHAMPION,
    BundleManifest,
    DomainRecord,
    Manifest,
    StackId,
    StackManifest,
    StackRef,
)
from bs_cluster.registry import descriptions
from bs_cluster.registry.artifacts import write_bundle, write_domain
from bs_cluster.registry.connection import Connection
from bs_cluster.registry.runs import Point, Runs
from bs_cluster.registry.versions import Entry, Versions
from bs_cluster.retirement import Live
from bs_cluster.store import Store

HISTORY = "history.jsonl"
REPORTS = REPORT, REPORT_TEXT = "report.json", "report.md"
SHOWN_REPORT = "report"  # tag of the campaign's run: digest of the bundle whose report it shows
Committed = list[tuple[StackRef, StackManifest]]
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

    def open_campaign(self, params: Mapping[str, Any]) -> None:
        """Find or create the campaign's run, mark it running and log ``params``, flattened. What a process that died
        left running is marked killed. To be followed by ``end_campaign``, however the process ends."""
        self._runs.refresh()
        with self._fresh_after_failure():
            self._runs.log_params(self._runs.take(), descriptions.flatten(params))

    def end_campaign(self, status: Status) -> None:
        """Mark the campaign's run, and every run of a round that still shows as running, as ended."""
        with self._fresh_after_failure():
            self._runs.end_all(status)

    def round_started(self, stack: StackId, params: Mapping[str, Any]) -> None:
        """Find or create the run of a round, mark it running and log ``params``, flattened. A round whose end is
        mirrored already stays finished: events lag where MLflow is slow."""
        with self._fresh_after_failure():
            run = self._runs.stack(stack)
            self._runs.log_params(run, descriptions.flatten(params))
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
        served = store.standing()  # first: a bundle that is promoted while this goes on is not among those read below
        held, now, erased = store.every_stack(), store.live(), store.erased()
        stacks = [
            pair[0].stack
            for pair in held
            if not _is_erased(erased, pair[1]) and self._mirror_stack(store, _rounds_to(pair, held))
        ]
        closed = [record for record in store.domains() if self._mirror_domain(record)]
        bundles = [
            number
            for number, digest, manifest in store.bundles()
            if not _is_erased(erased, manifest) and self._mirror_bundle(store, digest, manifest)
        ]
        self._mirror_report(store)
        self._mirror_retired(store, now)
        newest = {f"{self.campaign}-{ref.stack.domain}": ref.manifest for ref, _ in store.stacks()}
        self._versions.point(newest, {CHAMPION: served.champion, CHALLENGER: served.challenger})
        return SyncReport(
            stacks=tuple(stacks),
            rejected=tuple(outcome.stack for record in closed for outcome in record.rounds if not outcome.committed),
            domains=tuple(record.domain for record in closed),
            bundles=tuple(bundles),
            seconds=time.monotonic() - started,
        )

    def _mirror_stack(self, store: Store, rounds: Committed) -> bool:
        """The version of the last of ``rounds``, which are its domain's up to it."""
        ref, manifest = rounds[-1]
        if self._versions.has(ref.manifest):
            self._runs.finish(ref.stack)
            return False
        run = self._runs.stack(ref.stack)
        tags = descriptions.stack_tags(manifest, ref.manifest)
        if run.data.tags.get("manifest") != ref.manifest:
            self._runs.log_points(run, read_history(store, manifest), tags)
        self._runs.end(run)
        entry = Entry(
            model=f"{self.campaign}-{ref.stack.domain}",
            name=ref.stack.name,
            kind="stack",
            digest=ref.manifest,
            order=ref.stack.round,
            experiment_id=run.info.experiment_id,
            run_id=run.info.run_id,
            tags=tags,
            metrics=descriptions.stack_metrics(manifest),
            text=descriptions.stack_text(manifest, ref.manifest, store.uri, [own.stack.round for own, _ in rounds]),
            model_text=descriptions.open_domain_text(ref.stack.domain, self.campaign),
        )
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "model"
            failpoint("registry.mirror")
            write_domain(model, Path(scratch), store, rounds)
            self._versions.register(entry, model)
        return True

    def _mirror_domain(self, record: DomainRecord) -> bool:
        campaign, mark = self._runs.campaign(), f"closed.{record.domain}"
        if campaign.data.tags.get(mark) == record.digest():
            for outcome in record.rounds:
                self._runs.finish(outcome.stack)
            return False
        for outcome in record.rounds:
            run = self._runs.stack(outcome.stack)
            self._runs.log_dataset(run, record)
            self._runs.log_points(run, _at(outcome.steps, descriptions.outcome_metrics(outcome)))
            if not outcome.committed:
                self._runs.tag(run, descriptions.outcome_tags(outcome))
                self._runs.end(run)
        self._versions.describe(f"{self.campaign}-{record.domain}", descriptions.domain_text(record, self.campaign))
        # The mark comes last: it says that all of the above is done.
        points = _at(record.position, descriptions.domain_metrics(record))
        self._runs.log_points(campaign, points, {mark: record.digest()})
        return True

    def _mirror_bundle(self, store: Store, digest: str, manifest: BundleManifest) -> bool:
        if self._versions.has(digest):
            return False
        run, certificate = self._runs.campaign(), _certificate(store, manifest)
        entry = Entry(
            model=self.campaign,
            name=f"{self.campaign}_bundle_{manifest.number}",
            kind="bundle",
            digest=digest,
            order=manifest.number,
            experiment_id=run.info.experiment_id,
            run_id=run.info.run_id,
            tags=descriptions.bundle_tags(manifest, digest) | descriptions.certificate_tags(certificate),
            metrics={f"bundle/{name}": value for name, value in manifest.metrics.items()},
            text=descriptions.bundle_text(manifest, digest, store.uri),
            model_text=f"Campaign **{self.campaign}** as one model that answers prompts: a version per bundle.",
        )
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "model"
            write_bundle(model, Path(scratch), store, digest, certificate)
            self._versions.register(entry, model)
        return True

    def _mirror_retired(self, store: Store, now: Live) -> None:
        """What was taken out stays where it is and says so, and why: rounds, the bundles that held them, and the model
        of a domain that was removed."""
        for ref, retirement in now.retired.items():
            self._versions.retire(ref.manifest, retirement.reason)
        for _, digest, manifest in store.bundles():
            if held := now.retired_of(manifest.stacks):
                self._versions.retire(digest, f"it holds {held[0].stack.name}: {now.retired[held[0]].reason}")
        for domain, retirement in now.gone.items():
            model = f"{self.campaign}-{domain}"
            self._versions.describe(model, descriptions.removed_text(retirement, domain, self.campaign))

    def _mirror_report(self, store: Store) -> None:
        """Show the report of the newest bundle that holds nothing retired: its files, its text and, at the bundle's
        number as step, its key metrics."""
        outdated, _ = store.out_of_date()
        bundles = [bundle for bundle in store.bundles() if bundle[0] not in outdated]
        if not bundles:
            return
        number, digest, manifest = bundles[-1]
        run = self._runs.campaign()
        blobs = {entry.name: entry.sha256 for entry in manifest.files if entry.name in REPORTS}
        if run.data.tags.get(SHOWN_REPORT) == digest or len(blobs) < len(REPORTS):
            return
        files = {name: store.get_bytes(sha256) for name, sha256 in blobs.items()}
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            self._runs.log_folder(run, Path(folder), "report")
        values = descriptions.numbers(json.loads(files[REPORT])["key_metrics"], "report/")
        text = descriptions.cut(files[REPORT_TEXT].decode(), descriptions.MAX_TAG)
        self._runs.log_points(run, _at(number, values), {"mlflow.note.content": text, SHOWN_REPORT: digest})


def _rounds_to(last: tuple[StackRef, StackManifest], held: Committed) -> Committed:
    """The rounds of a stack's domain that it was trained on, and itself: what the domain was when it was committed."""
    ref, manifest = last
    return [pair for pair in held if pair[0].stack.domain == ref.stack.domain and pair[0] in (*manifest.parents, ref)]


def _is_erased(erased: Collection[str], manifest: Manifest) -> bool:
    """Whether files of it were erased on request, so that MLflow, wiped, cannot have it again."""
    return any(entry.sha256 in erased for entry in manifest.files)


def _certificate(store: Store, manifest: BundleManifest) -> Certificate | None:
    entry = next((entry for entry in manifest.files if entry.name == CERTIFICATE), None)
    return None if entry is None else Certificate.from_json(store.get_bytes(entry.sha256))


def read_history(store: Store, manifest: StackManifest) -> list[Point]:
    """The learning curves that a stack carries in its ``history.jsonl``."""
    return descriptions.parse_history(store.get_bytes(manifest.file(HISTORY).sha256).decode(), manifest.stack.name)


def _at(step: int, metrics: Mapping[str, float]) -> list[Point]:
    return [(step, key, value) for key, value in metrics.items()]
