"""Finding what to serve through MLflow: the bundle that ``models:/<campaign>@champion`` points to."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mlflow.artifacts import download_artifacts

from bs_cluster.errors import RegistryError
from bs_cluster.registry.connection import Connection


def champion_bundle(tracking_uri: str, campaign: str) -> tuple[str, str]:
    """(store URI, bundle manifest digest) of the campaign's champion.

    Raises RegistryUnavailable when MLflow is away, RegistryError when it knows no champion of that campaign.
    """
    with Connection(tracking_uri).to(f"find the champion of {campaign}") as client:
        if not client.search_registered_models(f"name = '{campaign}'"):
            raise RegistryError(
                f"MLflow at {tracking_uri} has no model {campaign!r}; train that campaign, or name another MLflow"
            )
        version = client.get_model_version_by_alias(campaign, "champion")
        location = client.get_model_version_download_uri(campaign, version.version)
        with tempfile.TemporaryDirectory() as folder:
            artifact = f"{location}/artifacts/bundle.json"
            reference = json.loads(
                Path(download_artifacts(artifact, dst_path=folder, tracking_uri=tracking_uri)).read_text()
            )
    return reference["store_uri"], reference["bundle"]
