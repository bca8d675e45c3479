"""A bundle or a domain as MLflow sees it: a pyfunc model from code whose weights are fetched from the store, by digest.

``mlflow.pyfunc.load_model("models:/<campaign>@champion").predict("…")`` gives a list of dicts with ``completion``
and ``gates`` (domain to weight); ``models:/<campaign>-<domain>@champion`` answers with that domain alone, all rounds.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bs_cluster.quiet import quieten_libraries

quieten_libraries()  # before any of them is imported

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from mlflow.models import set_model  # noqa: E402
from mlflow.pyfunc.model import PythonModel, PythonModelContext  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from bs_cluster.errors import UsageError  # noqa: E402
from bs_cluster.records import StackRef  # noqa: E402
from bs_cluster.serving.runtime import Answer, BundleRuntime, DomainRuntime  # noqa: E402
from bs_cluster.store.store import Store  # noqa: E402


@contextmanager
def hushed() -> Iterator[None]:
    """What libraries say of one another is kept from who asks; errors still come through, and after it all is as it
    was."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


class StoredModel(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        (path,) = [context.artifacts[kind] for kind in ("bundle", "domain") if kind in context.artifacts]
        reference = json.loads(Path(path).read_text())
        store = Store(reference["store_uri"], reference["campaign"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.runtime: BundleRuntime | DomainRuntime
        with hushed():
            if "stacks" in reference:
                rounds = [StackRef.from_dict(ref) for ref in reference["stacks"]]
                self.runtime = DomainRuntime(store, rounds, device)
            else:
                self.runtime = BundleRuntime(store, store.bundle(reference["bundle"]), device)

    def predict(self, context, model_input: pd.DataFrame, params=None):  # type: ignore[override]
        """One dict a prompt. MLflow makes a frame of a string, a list of strings and a frame's first column.

        ``params``: ``max_new_tokens``; ``temperature``, 0 for the likeliest tokens; ``domains`` fire at full strength
        in the place of what the meta-router says, none meaning that it decides.
        """
        how = dict(params or {})
        prompts, domains = [str(prompt) for prompt in model_input.iloc[:, 0]], how.pop("domains", None)
        with hushed():
            answers = self._answers(prompts, domains, how)
        return [{"completion": answer.text, "gates": dict(answer.gates)} for answer in answers]

    def _answers(self, prompts: Sequence[str], domains: Any, how: Mapping[str, Any]) -> list[Answer]:
        named = [] if domains is None else list(domains)
        if isinstance(self.runtime, BundleRuntime):
            weights_BD = self.runtime.fixed_gates(named, len(prompts)) if named else None
            return self.runtime.answer(prompts, weights_BD, **how)
        if other := [name for name in named if name != self.runtime.domain]:
            raise UsageError(
                f"domain {other[0]!r}: this version is {self.runtime.domain} alone; ask the campaign itself"
            )
        return self.runtime.answer(prompts, **how)


set_model(StoredModel())
