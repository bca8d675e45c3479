"""The runs of a campaign: one parent, a child per round. A run is found by its tags and created only if it is not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from bs_cluster.errors import RegistryError
from bs_cluster.records import DomainRecord, StackId
from bs_cluster.registry.connection import Connection, all_pages
from bs_cluster.registry.wording import run_tags

Point = tuple[int, str, float]  # step, key, value

# What one log_batch call takes.
BATCH = 1000
BATCH_PARAMS = 100
DATASET_DIGEST = 36


class Runs:
    """Finds, creates and fills the runs of one campaign in one experiment. Raises as ``Connection.to`` does."""

    def __init__(self, connection: Connection, campaign: str, experiment: str):
        self._connection = connection
        self._campaign = campaign
        self._experiment = experiment
        self._experiment_id: str | None = None
        self._known: dict[str | None, Run] | None = None  # stack name, None for the campaign's own -> run

    def refresh(self) -> None:
        """Forget what was looked up: MLflow may have been wiped or edited since."""
        self._experiment_id = self._known = None

    def experiment_id(self) -> str:
        if self._experiment_id is None:
            with self._connection.to(f"open experiment {self._experiment!r}") as client:
                found = client.get_experiment_by_name(self._experiment)
                if found is not None and found.lifecycle_stage == "deleted":
                    raise RegistryError(
                        f"experiment {self._experiment!r} was deleted in MLflow; restore it there "
                        f"(`mlflow experiments restore -x {found.experiment_id}`) or set registry.experiment"
                    )
                self._experiment_id = (
                    found.experiment_id
                    if found is not None
                    else client.create_experiment(self._experiment, self._connection.artifact_location())
                )
        return self._experiment_id

    def campaign(self) -> Run:
        tags = {"campaign": self._campaign, "kind": "campaign"}
        return self._known_runs().get(None) or self._create(None, self._campaign, tags)

    def stack(self, stack: StackId) -> Run:
        found = self._known_runs().get(stack.name)
        if found is not None:
            return found
        parent = {"mlflow.parentRunId": self.campaign().info.run_id}
        return self._create(stack.name, stack.name, {**run_tags(self._campaign, stack), **parent})

    def of(self, stack: StackId | None) -> Run:
        return self.campaign() if stack is None else self.stack(stack)

    def log_params(self, run: Run, params: Mapping[str, str]) -> None:
        """Log parameters that are new. MLflow's are immutable, so one that has changed since becomes a tag
        ``changed.<key>`` beside it."""
        with self._connection.to(f"log parameters of {run.info.run_name}") as client:
            known = client.get_run(run.info.run_id).data.params
            new = [Param(key, value) for key, value in params.items() if key not in known]
            changed = {f"changed.{key}": value for key, value in params.items() if known.get(key, value) != value}
            for start in range(0, len(new), BATCH_PARAMS):
                client.log_batch(run.info.run_id, params=new[start : start + BATCH_PARAMS])
        self.tag(run, changed)

    def log_points(self, run: Run, points: Iterable[Point], tags: Mapping[str, str] | None = None) -> None:
        """Log points in few calls. ``tags`` are set with the last of them, so that they mean: all of it arrived."""
        now_ms = int(time.time() * 1000)
        metrics = [Metric(key, value, now_ms, step) for step, key, value in points]
        last = [RunTag(key, value) for key, value in (tags or {}).items()]
        size = BATCH - len(last)
        with self._connection.to(f"log metrics of {run.info.run_name}") as client:
            for start in range(0, max(len(metrics), 1), size):
                final = start + size >= len(metrics)
                client.log_batch(run.info.run_id, metrics[start : start + size], tags=last if final else [])

    def missing(self, run: Run, points: Iterable[Point]) -> list[Point]:
        """Those of ``points`` that the run does not show yet, by step and key: live logging may have been here."""
        points, shown = list(points), set()
        with self._connection.to(f"read the curves of {run.info.run_name}") as client:
            for key in {key for _, key, _ in points} & set(run.data.metrics):
                shown |= {(metric.step, key) for metric in client.get_metric_history(run.info.run_id, key)}
        return [point for point in points if point[:2] not in shown]

    def log_dataset(self, run: Run, record: DomainRecord) -> None:
        """Show what a round was trained on: the fingerprint of the domain's rows and their counts, not the rows."""
        dataset = Dataset(
            name=record.domain,
            digest=record.data_fingerprint[:DATASET_DIGEST],
            source_type="bs_cluster",
            source=json.dumps({"campaign": self._campaign, "fingerprint": record.data_fingerprint}),
            profile=json.dumps(record.data_counts),
        )
        with self._connection.to(f"log the dataset of {run.info.run_name}") as client:
            client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def log_folder(self, run: Run, directory: Path, name: str) -> None:
        with self._connection.to(f"upload {directory} to {run.info.run_name}") as client:
            client.log_artifacts(run.info.run_id, str(directory), name)

    def tag(self, run: Run, tags: Mapping[str, str]) -> None:
        if tags:
            self.log_points(run, (), tags)

    def set_status(self, run: Run, status: str) -> None:
        """``RUNNING`` (again), or ``FINISHED`` with the time it ended."""
        with self._connection.to(f"mark {run.info.run_name} {status}") as client:
            if status == "RUNNING":
                client.update_run(run.info.run_id, status)
            else:
                client.set_terminated(run.info.run_id, status)

    def finish(self, stack: StackId) -> None:
        """Marks a decided round's run finished if it shows as running: word of its beginning may have come only after
        a sync had seen its end in the store."""
        run = self._known_runs().get(stack.name)
        if run is not None and run.info.status == "RUNNING":
            self.set_status(run, "FINISHED")

    def _known_runs(self) -> dict[str | None, Run]:
        if self._known is None:
            query = {
                "experiment_ids": [self.experiment_id()],
                "filter_string": f"tags.campaign = '{self._campaign}'",
                "order_by": ["attributes.start_time DESC"],
            }
            with self._connection.to(f"look up the runs of {self._campaign}") as client:
                # Newest first, so that of two with the same name the older one stays.
                runs = all_pages(client.search_runs, **query)
            self._known = {run.data.tags.get("stack"): run for run in runs}
        return self._known

    def _create(self, key: str | None, name: str, tags: dict[str, str]) -> Run:
        known = self._known_runs()
        with self._connection.to(f"create run {name}") as client:
            known[key] = client.create_run(self.experiment_id(), tags=tags, run_name=name)
        return known[key]
