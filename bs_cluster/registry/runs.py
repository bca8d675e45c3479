"""The runs of a campaign: one parent, a child per round, and beside them one per bundle, with its rows. A run is found
by its tags and created only if it is not."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Metric,
    Param,
    Run,
    RunTag,
    Span,
    TraceInfo,
)
from mlflow.tracing.client import TracingClient
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_TYPE, MLFLOW_RUN_TYPE_GENAI_EVALUATE

from bs_cluster.errors import RegistryError
from bs_cluster.failpoints import failpoint
from bs_cluster.records import StackId
from bs_cluster.registry.connection import Connection, all_pages
from bs_cluster.registry.descriptions import MAX_TAG, cut, run_tags

Point = tuple[int, str, float]  # step, key, value

# What one log_batch call takes.
BATCH = 1000
BATCH_PARAMS = 100
BATCH_TRACES = 100
DATASET_DIGEST = 36

NOTE = "mlflow.note.content"  # tag of a run: what its page shows as its description
OWNER = "owner"  # tag: the process that keeps a campaign's run running
DECIDED = "committed"  # tag, true or false: the round's end is mirrored; what its beginning still says comes too late


class Runs:
    """Finds, creates and fills the runs of one campaign in one experiment. Raises as ``Connection.to`` does."""

    def __init__(self, connection: Connection, campaign: str, experiment: str):
        self._connection = connection
        self._campaign = campaign
        self._experiment = experiment
        self._experiment_id: str | None = None
        self._known: dict[str | None, Run] | None = None  # by ``_key``
        self._shown: dict[str, set[tuple[int, str]]] = {}  # run id -> (step, key) of the points it has

    def refresh(self) -> None:
        """Forget what was looked up: MLflow may have been wiped or edited since."""
        self._experiment_id = self._known = None
        self._shown.clear()

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

    def evaluation(self, digest: str, number: int) -> Run:
        """The run that holds the rows of the bundle with this manifest."""
        found = self._known_runs().get(digest)
        if found is not None:
            return found
        # Without a parent: MLflow lists evaluation runs under theirs, and leaves out a campaign's, which made models.
        tags = {"campaign": self._campaign, "kind": "evaluation", "bundle": str(number), "manifest": digest}
        tags[MLFLOW_RUN_TYPE] = MLFLOW_RUN_TYPE_GENAI_EVALUATE
        return self._create(digest, f"{self._campaign} bundle {number}", tags)

    def of(self, stack: StackId | None) -> Run:
        return self.campaign() if stack is None else self.stack(stack)

    def log_params(self, run: Run, params: Mapping[str, str], now: Mapping[str, str] | None = None) -> None:
        """Log parameters that are new. MLflow's are immutable, so one that has changed since becomes a tag
        ``changed.<key>`` beside it: by ``now``, which has those too that ``params`` leaves out."""
        known = run.data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        changed = {f"changed.{key}": v for key, v in (now or params).items() if known.get(key, v) != v}
        if new:
            with self._connection.to(f"log parameters of {run.info.run_name}") as client:
                for start in range(0, len(new), BATCH_PARAMS):
                    client.log_batch(run.info.run_id, params=new[start : start + BATCH_PARAMS])
            known.update({param.key: param.value for param in new})
        self.tag(run, changed)

    def log_points(self, run: Run, points: Iterable[Point], tags: Mapping[str, str] | None = None) -> None:
        """Log those points that the run does not show yet, by step and key, in few calls. MLflow would keep a point as
        often as it is told: live and from the store, by a round that was begun again, after an answer got lost.
        ``tags`` are set with the last of them, so that they mean: all of it arrived."""
        points = list(points)
        shown: set[tuple[int, str]] = self._points_of(run) if points else set()
        new = [point for point in points if point[:2] not in shown]
        now_ms = int(time.time() * 1000)
        metrics = [Metric(key, value, now_ms, step) for step, key, value in new]
        last = [RunTag(key, value) for key, value in (tags or {}).items()]
        if not metrics and not last:
            return
        size = BATCH - len(last)
        with self._connection.to(f"log metrics of {run.info.run_name}") as client:
            failpoint("registry.metrics")
            for start in range(0, max(len(metrics), 1), size):
                final = start + size >= len(metrics)
                client.log_batch(run.info.run_id, metrics[start : start + size], tags=last if final else [])
        shown |= {point[:2] for point in new}
        run.data.tags.update(tags or {})

    def log_again(self, run: Run, points: Sequence[Point]) -> None:
        """Log points whatever the run shows at their steps: MLflow shows the newest of the last step."""
        now_ms = int(time.time() * 1000)
        metrics = [Metric(key, value, now_ms, step) for step, key, value in points]
        with self._connection.to(f"log metrics of {run.info.run_name}") as client:
            for start in range(0, len(metrics), BATCH):
                client.log_batch(run.info.run_id, metrics[start : start + BATCH])

    def _points_of(self, run: Run) -> set[tuple[int, str]]:
        """(step, key) of what a run shows: read once, remembered while this process alone adds to it."""
        if run.info.run_id not in self._shown:
            with self._connection.to(f"read the curves of {run.info.run_name}") as client:
                keys = client.get_run(run.info.run_id).data.metrics
                histories = [client.get_metric_history(run.info.run_id, key) for key in keys]
            self._shown[run.info.run_id] = {(point.step, point.key) for history in histories for point in history}
        return self._shown[run.info.run_id]

    def log_dataset(self, run: Run, name: str, fingerprint: str, profile: Mapping[str, int], context: str) -> None:
        """Show which rows a run learned from (``training``) or was judged on (``evaluation``): their fingerprint and
        counts, not the rows. What is shown already costs nothing."""
        digest = fingerprint[:DATASET_DIGEST]
        known = run.inputs.dataset_inputs if run.inputs else []
        if any((data.dataset.name, data.dataset.digest) == (name, digest) for data in known):
            return
        dataset = Dataset(
            name=name,
            digest=digest,
            source_type="bs_cluster",
            source=json.dumps({"campaign": self._campaign, "fingerprint": fingerprint}),
            profile=json.dumps(profile),
        )
        shown = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        with self._connection.to(f"log the dataset of {run.info.run_name}") as client:
            client.log_inputs(run.info.run_id, [shown])
        known.append(shown)

    def log_model(self, run: Run, model_id: str) -> None:
        """Show which logged model a run is about. What is shown already costs nothing."""
        known = run.inputs.model_inputs if run.inputs else []
        if all(model.model_id != model_id for model in known):
            shown = LoggedModelInput(model_id)
            with self._connection.to(f"log the model of {run.info.run_name}") as client:
                client.log_inputs(run.info.run_id, models=[shown])
            known.append(shown)

    def log_table(self, run: Run, table: Mapping[str, Any], path: str) -> None:
        """Upload a table, in the place of an earlier one of that name: MLflow's own way would append to it."""
        self.log_text(run, json.dumps(table, ensure_ascii=False), path)
        self.tag(run, {MLFLOW_LOGGED_ARTIFACTS: json.dumps([{"path": path, "type": "table"}])})

    def log_traces(self, run: Run, traces: Sequence[tuple[TraceInfo, Sequence[Span]]]) -> None:
        """Log traces with their assessments and spans; one whose ids are there already is written over."""
        with self._connection.to(f"log the traces of {run.info.run_name}"):
            client = TracingClient(self._connection.tracking_uri)
            for info, _ in traces:
                client.start_trace(info)
            for start in range(0, len(traces), BATCH_TRACES):
                spans = [span for _, spans in traces[start : start + BATCH_TRACES] for span in spans]
                client.log_spans(run.info.experiment_id, spans)

    def log_text(self, run: Run, text: str, path: str) -> None:
        with self._connection.to(f"upload {path} to {run.info.run_name}") as client:
            client.log_text(run.info.run_id, text, path)

    def log_folder(self, run: Run, directory: Path, name: str) -> None:
        with self._connection.to(f"upload {directory} to {run.info.run_name}") as client:
            client.log_artifacts(run.info.run_id, str(directory), name)

    def tag(self, run: Run, tags: Mapping[str, str]) -> None:
        """Set tags; those that say so already cost nothing."""
        self.log_points(run, (), {key: value for key, value in tags.items() if run.data.tags.get(key) != value})

    def describe(self, key: str | None, text: str) -> None:
        """Give a run, found as in ``ids``, its description; one that was deleted by hand stays away."""
        run = self._known_runs().get(key)
        if run is not None:
            self.tag(run, {NOTE: cut(text, MAX_TAG)})

    def start(self, run: Run) -> None:
        """Mark a run running, again if need be; but not one whose round's end is mirrored: events lag."""
        if DECIDED not in run.data.tags:
            with self._connection.to(f"mark {run.info.run_name} RUNNING") as client:
                client.update_run(run.info.run_id, "RUNNING")

    def end(self, run: Run, status: str = "FINISHED") -> None:
        """Mark a run ``FINISHED``, ``FAILED`` or ``KILLED``, with the time it ended."""
        with self._connection.to(f"mark {run.info.run_name} {status}") as client:
            client.set_terminated(run.info.run_id, status)

    def end_all(self, status: str) -> None:
        """End whatever of this campaign shows as running."""
        self._known = None
        for run in list(self._known_runs().values()):
            if run.info.status == "RUNNING":
                self.end(run, status)

    def settle(self) -> None:
        """End what shows as running and is kept by no process: killed where its owner died, finished where it has none.
        A campaign that another machine keeps is left alone."""
        self._known = None
        campaign = self._known_runs().get(None)
        owner = campaign.data.tags.get(OWNER) if campaign else None
        if owner is None:
            self.end_all("FINISHED")
        elif _is_dead(owner):
            self.end_all("KILLED")

    def take(self) -> Run:
        """The campaign's run, running and this process's own. Rounds that a process before it left running, and
        campaigns whose process on this machine died without a word, are ``KILLED``."""
        self.end_all("KILLED")
        running = f"attributes.status = 'RUNNING' and tags.campaign != '{self._campaign}'"
        with self._connection.to("look for campaigns whose process died") as client:
            others = all_pages(client.search_runs, experiment_ids=[self.experiment_id()], filter_string=running)
        dead = {run.data.tags["campaign"] for run in others if _is_dead(run.data.tags.get(OWNER))}
        for run in others:
            if run.data.tags["campaign"] in dead:
                self.end(run, "KILLED")
        campaign = self.campaign()
        self.tag(campaign, {OWNER: _this_process()})
        self.start(campaign)
        return campaign

    def finish(self, stack: StackId) -> None:
        """Marks a decided round's run finished where it does not show so: its process may have been killed between its
        end in the store and here."""
        run = self._known_runs().get(stack.name)
        if run is not None and run.info.status != "FINISHED":
            self.end(run)

    def ids(self) -> dict[str | None, str]:
        """Run ids by stack name, of evaluations by the bundle's manifest, None for the campaign's own."""
        return {key: run.info.run_id for key, run in self._known_runs().items()}

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
            self._known = {_key(run): run for run in runs}
        return self._known

    def _create(self, key: str | None, name: str, tags: dict[str, str]) -> Run:
        known = self._known_runs()
        with self._connection.to(f"create run {name}") as client:
            failpoint("registry.create_run")
            known[key] = client.create_run(self.experiment_id(), tags=tags, run_name=name)
        return known[key]


def _key(run: Run) -> str | None:
    """What a run is known by: its stack's name, the manifest of the bundle that it evaluates, None for a campaign's."""
    return run.data.tags.get("stack") or run.data.tags.get("manifest")


def _this_process() -> str:
    """Host, process id and its start in Unix seconds: an id is used again, both together are not."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _is_dead(owner: str | None) -> bool:
    """Whether the process that a tag names has ended; one of another machine, or of none, is left alone."""
    host, pid, started = owner.split() if owner else ("", "0", "0")
    if host != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != started
    except psutil.NoSuchProcess:
        return True
