"""A bundle or a domain as MLflow sees it: a pyfunc model from code whose weights are fetched from the store, by digest.

``mlflow.pyfunc.load_model("models:/<campaign>@champion").predict(["…"])`` gives a list of dicts with ``completion``
and ``gates`` (domain to weight); ``models:/<campaign>-<domain>@champion`` answers with that domain alone, all rounds.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from bs_cluster.records import StackRef
from bs_cluster.serving.runtime import BundleRuntime, DomainRuntime
from bs_cluster.store.store import Store


class StoredModel(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        (path,) = [context.artifacts[kind] for kind in ("bundle", "domain") if kind in context.artifacts]
        reference = json.loads(Path(path).read_text())
        store = Store(reference["store_uri"], reference["campaign"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if "stacks" in reference:
            rounds = [StackRef.from_dict(ref) for ref in reference["stacks"]]
            self.runtime = DomainRuntime(store, rounds, device)
        else:
            self.runtime = BundleRuntime(store, store.bundle(reference["bundle"]), device)

    def predict(self, context, model_input: list[str], params=None):  # type: ignore[override]
        """One dict a prompt. Without a return type: MLflow warns of every type that a mapping's values could have."""
        answers = self.runtime.answer(list(model_input), **(params or {}))
        return [{"completion": answer.text, "gates": dict(answer.gates)} for answer in answers]


set_model(StoredModel())
