"""The bundle as MLflow sees it: a pyfunc model from code whose weights are fetched from the store, by digest.

``mlflow.pyfunc.load_model("models:/<campaign>@champion").predict(["…"])`` gives a list of dicts with ``completion``
and ``gates`` (domain to weight).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from bs_cluster.serving.runtime import BundleRuntime
from bs_cluster.store.store import Store


class BundleModel(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        reference = json.loads(Path(context.artifacts["bundle"]).read_text())
        store = Store(reference["store_uri"], reference["campaign"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.runtime = BundleRuntime(store, store.bundle(reference["bundle"]), device)

    def predict(self, context, model_input: list[str], params=None):  # type: ignore[override]
        """One dict a prompt. Without a return type: MLflow warns of every type that a mapping's values could have."""
        answers = self.runtime.answer(list(model_input), **(params or {}))
        return [{"completion": answer.text, "gates": dict(answer.gates)} for answer in answers]


set_model(BundleModel())
