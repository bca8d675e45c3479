"""The model registry's side of a campaign: a version per committed stack and per bundle, found by manifest digest."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from bs_cluster.errors import RegistryError
from bs_cluster.failpoints import failpoint
from bs_cluster.records import CHAMPION, Promotion
from bs_cluster.registry.connection import Connection, all_pages
from bs_cluster.registry.descriptions import MAX_TAG, cut

RETIRED = "retired"  # tag of a version whose stacks were taken out: why
EVALUATION = "evaluation"  # tag of a bundle's version: id of the run that shows its rows
WHY = "promotion"  # tag of a bundle's version: what it became, and why


@dataclass(frozen=True)
class Entry:
    """One version to register. ``order`` grows with newness: a domain's champion is the entry with the largest.

    ``metrics`` were measured on the rows ``dataset``, a name and a fingerprint, and are the run's too, at ``step``:
    a number that a version has is logged once. ``params`` made the version.
    """

    model: str
    name: str
    kind: str
    digest: str
    order: int
    experiment_id: str
    run_id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    step: int
    dataset: tuple[str, str] | None


class Versions:
    """Finds and creates the registered models and versions of one campaign. Raises as ``Connection.to`` does."""

    def __init__(self, connection: Connection, campaign: str):
        self._connection = connection
        self._campaign = campaign
        self._versions: dict[str, ModelVersion] = {}  # by manifest digest
        self._models: dict[str, RegisteredModel] = {}  # by name
        self._logged: dict[str, LoggedModel] = {}  # by manifest digest

    def refresh(self, experiment_id: str) -> None:
        """Look up all that MLflow has of this campaign, in three searches."""
        mine = f"tags.campaign = '{self._campaign}'"
        with self._connection.to(f"look up the versions of {self._campaign}") as client:
            versions = all_pages(client.search_model_versions, filter_string=mine)
            models = all_pages(client.search_registered_models, filter_string=mine)
            logged = all_pages(client.search_logged_models, experiment_ids=[experiment_id], filter_string=mine)
        # A version copied under another name keeps its tags; it is its owner's, not ours.
        ours = (version for version in versions if self._is_ours(version.name))
        self._versions = {version.tags["manifest"]: version for version in ours}
        self._models = {model.name: model for model in models}
        self._logged = {model.tags["manifest"]: model for model in logged}

    def has(self, digest: str) -> bool:
        return digest in self._versions

    def register(self, entry: Entry, files: Path) -> None:
        """Create the version of ``entry`` with ``files`` as its artifacts, from wherever an earlier attempt stopped."""
        logged = self._logged_model(entry, files)
        with self._connection.to(f"register {entry.name} as a version of {entry.model}") as client:
            if entry.model not in self._models:
                tags = {"campaign": self._campaign, "kind": entry.kind}
                self._models[entry.model] = client.create_registered_model(entry.model, tags)
            failpoint("registry.register")
            # By location: a models:/<id> source is resolved through MLflow's process-wide tracking URI.
            version = client.create_model_version(
                entry.model,
                source=logged.artifact_location,
                run_id=entry.run_id,
                tags={**entry.tags, "order": str(entry.order)},
                model_id=logged.model_id,
            )
            self._versions[entry.digest] = version
            shown = json.dumps([{"name": entry.model, "version": version.version}])
            failpoint("registry.tag")
            client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": shown})

    def model_id(self, digest: str) -> str | None:
        """Of the logged model behind a version; None where that was deleted by hand."""
        return self._logged[digest].model_id if digest in self._logged else None

    def is_evaluated(self, digest: str) -> bool:
        return EVALUATION in self._versions[digest].tags

    def evaluated(self, digest: str, run_id: str) -> None:
        """Link a version with the run that shows its rows, all of them."""
        version = self._versions[digest]
        with self._connection.to(f"tag version {version.version} of {version.name}") as client:
            client.set_model_version_tag(version.name, str(version.version), EVALUATION, run_id)
        version.tags[EVALUATION] = run_id

    def addresses(self) -> dict[str, tuple[str, str]]:
        """(model, version) by manifest digest."""
        return {digest: (version.name, str(version.version)) for digest, version in self._versions.items()}

    def describe(self, model: str, text: str) -> None:
        """Give a registered model its description. One that is right already costs nothing."""
        if model in self._models and self._models[model].description != text:
            with self._connection.to(f"describe {model}") as client:
                self._models[model] = client.update_registered_model(model, text)

    def describe_version(self, digest: str, text: str) -> None:
        """The same for a version."""
        version = self._versions.get(digest)
        if version is not None and version.description != text:
            with self._connection.to(f"describe version {version.version} of {version.name}") as client:
                self._versions[digest] = client.update_model_version(version.name, str(version.version), text)

    def retire(self, digest: str, reason: str) -> None:
        """Let a version say that what it is of was taken out, and why. What says so already costs nothing."""
        version, reason = self._versions.get(digest), cut(reason, MAX_TAG)
        if version is not None and version.tags.get(RETIRED) != reason:
            with self._connection.to(f"tag version {version.version} of {version.name}") as client:
                client.set_model_version_tag(version.name, str(version.version), RETIRED, reason)

    def point(self, newest: Mapping[str, str], served: Mapping[str, Promotion | None]) -> None:
        """Let each domain's champion be the version that ``newest`` names by its manifest, none where it names none,
        and the campaign's aliases be what ``served`` says, by alias; the version tells why. What is right already
        costs nothing."""
        with self._connection.to(f"set the aliases of {self._campaign}") as client:
            for name in self._models:
                if name != self._campaign and self._is_ours(name):
                    self._alias(client, name, CHAMPION, self._versions.get(newest.get(name, "")))
            for alias, promotion in served.items():
                if self._campaign not in self._models:
                    continue
                version = None if promotion is None else self._versions[promotion.manifest]
                self._alias(client, self._campaign, alias, version)
                if promotion is not None and version is not None:
                    reason = cut(f"{alias}: {promotion.reason}", MAX_TAG)
                    if version.tags.get(WHY) != reason:
                        client.set_model_version_tag(version.name, str(version.version), WHY, reason)

    def _alias(self, client: MlflowClient, model: str, alias: str, version: ModelVersion | None) -> None:
        held = self._models[model].aliases.get(alias)
        if version is None and held is not None:
            client.delete_registered_model_alias(model, alias)
        elif version is not None and str(held) != str(version.version):
            failpoint("registry.alias")
            client.set_registered_model_alias(model, alias, str(version.version))

    def _is_ours(self, model: str) -> bool:
        return model == self._campaign or model.startswith(f"{self._campaign}-")

    def _logged_model(self, entry: Entry, files: Path) -> LoggedModel:
        model = self._logged.get(entry.digest)
        if model is not None and model.status == LoggedModelStatus.READY:
            return model
        with self._connection.to(f"log the model of {entry.name}") as client:
            if model is None:
                failpoint("registry.create_model")
                tags, params = dict(entry.tags), dict(entry.params)
                model = client.create_logged_model(
                    entry.experiment_id, entry.name, entry.run_id, tags, params, model_type=entry.kind
                )
                self._logged[entry.digest] = model
            failpoint("registry.upload")
            client.log_model_artifacts(model.model_id, str(files))
            time_ms, model_id = model.creation_timestamp, model.model_id
            rows = dict(zip(("dataset_name", "dataset_digest"), entry.dataset or (), strict=False))
            metrics = [Metric(k, value, time_ms, entry.step, model_id, **rows) for k, value in entry.metrics.items()]
            client.log_batch(entry.run_id, metrics)
            # Refused the second time, and an earlier attempt may have got so far.
            if model.model_id not in _outputs(client.get_run(entry.run_id)):
                client.log_outputs(entry.run_id, [LoggedModelOutput(model.model_id, 0)])
            failpoint("registry.finalize")
            self._logged[entry.digest] = client.finalize_logged_model(model.model_id, "READY")
        return self._logged[entry.digest]


def _outputs(run: Run) -> set[str]:
    """Ids of the logged models that a run is shown to have made."""
    return {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()


def champion_bundle(tracking_uri: str, campaign: str) -> tuple[str, str]:
    """(store URI, bundle manifest digest) of the campaign's champion.

    Raises RegistryUnavailable when MLflow is away, RegistryError when it knows no champion of that campaign.
    """
    with Connection(tracking_uri).to(f"find the champion of {campaign}") as client:
        if not client.search_registered_models(f"name = '{campaign}'"):
            raise RegistryError(
                f"MLflow at {tracking_uri} has no model {campaign!r}; train that campaign, or name another MLflow"
            )
        version = client.get_model_version_by_alias(campaign, CHAMPION)
        location = client.get_model_version_download_uri(campaign, version.version)
        with tempfile.TemporaryDirectory() as folder:
            artifact = f"{location}/artifacts/bundle.json"
            reference = json.loads(
                Path(download_artifacts(artifact, dst_path=folder, tracking_uri=tracking_uri)).read_text()
            )
    return reference["store_uri"], reference["bundle"]
