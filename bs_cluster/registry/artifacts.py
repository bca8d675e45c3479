"""What MLflow holds of a version: a pyfunc model whose artifact is a reference to the store, which the weights never
leave. A bundle's answers routed; a domain's with all its rounds so far, and tells their PEFT config, manifest, place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Map

from bs_cluster.adapter_format import CONFIG_NAME
from bs_cluster.certificate import CERTIFICATE, Certificate
from bs_cluster.records import StackManifest, StackRef
from bs_cluster.stacks import StackConfig
from bs_cluster.stacks.adapter_files import config_text
from bs_cluster.stacks.whole_domain import joined_config
from bs_cluster.store import Store

# By path and not by import: serving is built on top of the registry. MLflow runs this file when a version is loaded.
PYFUNC_MODEL = Path(__file__).parents[1] / "serving" / "pyfunc_model.py"
# Given, because MLflow would otherwise load the bundle and its base model to find out.
PYFUNC_PACKAGES = ("mlflow", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "pyarrow", "pydantic")

# An input without a name is a string, a list of them or any frame's first column.
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string)]),
    outputs=Schema([ColSpec(DataType.string, "completion"), ColSpec(Map(DataType.double), "gates")]),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, 64),
            ParamSpec("temperature", DataType.double, 0.0),
            ParamSpec("domains", DataType.string, [], (-1,)),
        ]
    ),
)

EXAMPLE = (["What is your favourite book?"], {"max_new_tokens": 32})


def write_domain(folder: Path, scratch: Path, store: Store, rounds: Sequence[tuple[StackRef, StackManifest]]) -> None:
    """A domain as it stands after the last of ``rounds``, which are all up to that one: the model as in
    ``write_bundle``, its artifact ``domain`` being ``{store_uri, campaign, stacks}``. Beside it ``adapter_config.json``
    of all rounds as one adapter, the last one's ``manifest.json``, and ``weights.txt``."""
    reference = {"store_uri": store.uri, "campaign": store.campaign, "stacks": [ref.to_dict() for ref, _ in rounds]}
    _save_model(folder, {"domain": _reference(scratch / "domain.json", reference)})
    configs = [StackConfig(**json.loads(store.get_bytes(m.file(CONFIG_NAME).sha256))) for _, m in rounds]
    (folder / CONFIG_NAME).write_text(config_text(joined_config(configs)))
    (folder / "manifest.json").write_text(json.dumps(rounds[-1][1].to_dict(), indent=2) + "\n")
    listed = [
        f"{ref.stack.name}, manifest {ref.manifest}\n\n"
        + "".join(f"{entry.sha256}  {entry.size:>12}  {entry.name}\n" for entry in manifest.files)
        for ref, manifest in rounds
    ]
    (folder / "weights.txt").write_text(
        f"The weights lie in the store {store.uri}, campaign {store.campaign}, by SHA-256. All rounds fire together; "
        f"one adapter of them: bs_cluster export --domain {rounds[-1][0].stack.domain}\n\n" + "\n".join(listed)
    )


def write_bundle(folder: Path, scratch: Path, store: Store, digest: str, certificate: Certificate | None) -> None:
    """A models-from-code pyfunc model into ``folder``, which must be new: no pickle, no trial prediction. Its artifact
    ``bundle`` is a JSON object ``{store_uri, campaign, bundle}``, ``bundle`` being the manifest's digest;
    ``certificate`` is the bundle's, where it has one."""
    reference = {"store_uri": store.uri, "campaign": store.campaign, "bundle": digest}
    artifacts = {"bundle": _reference(scratch / "bundle.json", reference)}
    if certificate is not None:
        artifacts["certificate"] = str(scratch / CERTIFICATE)
        (scratch / CERTIFICATE).write_bytes(certificate.to_json())
    _save_model(folder, artifacts)


def _reference(path: Path, reference: Mapping[str, Any]) -> str:
    path.write_text(json.dumps(reference, indent=2))
    return str(path)


def _save_model(folder: Path, artifacts: dict[str, str]) -> None:
    mlflow.pyfunc.save_model(
        path=folder,
        python_model=str(PYFUNC_MODEL),
        artifacts=artifacts,
        signature=SIGNATURE,
        input_example=EXAMPLE,
        pip_requirements=[f"{name}=={version(name)}" for name in PYFUNC_PACKAGES],
    )
