"""What MLflow holds of a version. The weights never leave the store: a stack is shown by its PEFT config, its manifest
and where it lies; a bundle is a pyfunc model whose one artifact is a reference to the store."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc

from bs_cluster.adapter_format import CONFIG_NAME
from bs_cluster.certificate import CERTIFICATE, Certificate
from bs_cluster.records import StackManifest
from bs_cluster.store import Store

# By path and not by import: serving is built on top of the registry. MLflow runs this file when a bundle is loaded.
PYFUNC_MODEL = Path(__file__).parents[1] / "serving" / "pyfunc_model.py"
# Given, because MLflow would otherwise load the bundle and its base model to find out.
PYFUNC_PACKAGES = ("mlflow", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "pyarrow", "pydantic")


def write_stack_card(folder: Path, store: Store, manifest: StackManifest, digest: str) -> None:
    """``adapter_config.json``, ``manifest.json`` and ``weights.txt`` of a stack into ``folder``."""
    (folder / CONFIG_NAME).write_bytes(store.get_bytes(manifest.file(CONFIG_NAME).sha256))
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict(), indent=2) + "\n")
    files = "".join(f"{entry.sha256}  {entry.size:>12}  {entry.name}\n" for entry in manifest.files)
    (folder / "weights.txt").write_text(
        f"The weights of {manifest.stack.name} lie in the store {store.uri}, campaign {store.campaign}, by SHA-256:\n\n"
        f"{files}\nmanifest {digest}\n"
    )


def write_bundle_card(folder: Path, scratch: Path, store: Store, digest: str, certificate: Certificate | None) -> None:
    """A models-from-code pyfunc model into ``folder``, which must be new: no pickle, no trial prediction. Its artifact
    ``bundle`` is a JSON object ``{store_uri, campaign, bundle}``, ``bundle`` being the manifest's digest;
    ``certificate`` is the bundle's, where it has one."""
    reference = scratch / "bundle.json"
    reference.write_text(json.dumps({"store_uri": store.uri, "campaign": store.campaign, "bundle": digest}, indent=2))
    artifacts = {"bundle": str(reference)}
    if certificate is not None:
        artifacts["certificate"] = str(scratch / CERTIFICATE)
        (scratch / CERTIFICATE).write_bytes(certificate.to_json())
    mlflow.pyfunc.save_model(
        path=folder,
        python_model=str(PYFUNC_MODEL),
        artifacts=artifacts,
        pip_requirements=[f"{name}=={version(name)}" for name in PYFUNC_PACKAGES],
    )
