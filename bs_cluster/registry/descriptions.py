"""What MLflow shows of our records as tags, parameters and metrics, each number under one name. Pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bs_cluster.certificate import Certificate, summary
from bs_cluster.errors import RegistryError
from bs_cluster.records import BundleManifest, DomainRecord, RoundOutcome, Spread, StackId, StackManifest

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000

HELD_UP = ("isolated", "ungated")  # the modes whose loss on a domain's rows later domains can move
DECIDED = ("val_before", "val_after", "gain", "gain_error", "rows")  # what the rows that decide say of a round


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters, ``{"data.max_length": "512"}``. Sections of a list of named things are
    keyed by their names (``domains.chat.steps``), other lists are JSON. Cut to the lengths that MLflow takes."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) and "name" in v for v in value):
            value = {v["name"]: {k: item for k, item in v.items() if k != "name"} for v in value}
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, Mapping | list | tuple):
            flat[_key(name)] = cut(json.dumps(value, default=str), MAX_PARAM)
        else:
            flat[_key(name)] = cut(str(value), MAX_PARAM)
    return flat


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numeric leaves of a nested mapping as MLflow metrics, ``{"loss/routed/chat": 1.9}``. The rest is left out."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(numbers(value, f"{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[_key(name)] = float(value)
    return flat


def parse_history(text: str, name: str) -> list[tuple[int, str, float]]:
    """The points ``(step, key, value)`` of a ``history.jsonl``: a JSON object per line, ``step`` and numbers."""
    points = []
    for line_number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
            points += [(step, _key(key), float(value)) for key, value in row.items() if value is not None]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(
                f"history.jsonl of {name}, line {line_number} is no {{'step': int, ...}} ({error}): {line[:120]!r}"
            ) from error
    return points


def run_tags(campaign: str, stack: StackId) -> dict[str, str]:
    """How the run of a round is found, live or rebuilt."""
    return {
        "campaign": campaign,
        "kind": "stack",
        "stack": stack.name,
        "domain": stack.domain,
        "round": str(stack.round),
    }


def stack_tags(manifest: StackManifest, digest: str) -> dict[str, str]:
    """How a committed stack is found: on its run, its logged model and its model version. The one digest leads to all
    others: it is that of the manifest, which is among the version's artifacts."""
    return {**run_tags(manifest.campaign, manifest.stack), "manifest": digest, "committed": "true"}


def outcome_tags(outcome: RoundOutcome) -> dict[str, str]:
    """What marks the run of a round that was not committed."""
    return {"committed": "false", "reason": cut(outcome.reason, MAX_TAG)}


def stack_metrics(manifest: StackManifest) -> dict[str, float]:
    """The manifest's metrics, those of the rows that decided under names that say so, less the ends of curves."""
    return {decision(key): value for key, value in manifest.metrics.items() if not key.startswith("train_")}


def outcome_metrics(outcome: RoundOutcome) -> dict[str, float]:
    names = (*DECIDED, "steps", "restores", "seconds")
    return {decision(name): float(getattr(outcome, name)) for name in names}


def decision(name: str) -> str:
    """How MLflow calls a round's number: ``decision/val_after`` where the rows that decide about a commit gave it, so
    that nobody takes it for a point of the curve ``selection_loss``, which is of other rows."""
    return f"decision/{name}" if name in DECIDED else name


def domain_metrics(record: DomainRecord) -> dict[str, float]:
    """What was measured when this domain closed, as campaign metrics at step ``position``: curves over the curriculum.
    A ``validation/<domain>/isolated`` that is a flat line was not disturbed by those after it."""
    held_up = {domain: {mode: told[mode] for mode in HELD_UP if mode in told} for domain, told in record.matrix.items()}
    told = {
        **numbers(record.capacity, "capacity/"),
        "basis_rank": record.basis_rank_mean,
        **{f"energy_held/{side}": spread.mean for side, spread in record.energy_held.items()},
        **_most("delta_overlap", record.overlap),
        **_most("foreign", record.foreign | record.abroad),
        "seconds": record.seconds,
    }
    return numbers(held_up, "validation/") | numbers(told, "curriculum/")


def _most(name: str, spreads: Mapping[str, Spread]) -> dict[str, float]:
    """The largest mean over sites; nothing where nothing was measured."""
    return {name: max(spread.mean for spread in spreads.values())} if spreads else {}


def bundle_tags(manifest: BundleManifest, digest: str) -> dict[str, str]:
    return {
        "campaign": manifest.campaign,
        "kind": "bundle",
        "manifest": digest,
        "domains": cut(" ".join(manifest.domains), MAX_TAG),
    }


def bundle_metrics(manifest: BundleManifest) -> dict[str, float]:
    """The manifest's metrics, less those of single kinds of rows that no domain owns: the report has them."""
    return {_key(name): value for name, value in manifest.metrics.items() if ":" not in name}


def certificate_tags(certificate: Certificate | None) -> dict[str, str]:
    """What a bundle's version tells of its certificate, which is among its artifacts."""
    return {} if certificate is None else {"certificate": summary(certificate.statements)}


def loss(value: float | None) -> str:
    return "not measured" if value is None or math.isnan(value) else f"{value:.4f}"


def cut(text: str, limit: int) -> str:
    """``text``, or as much of it as fits with an ellipsis to say so."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _key(name: str) -> str:
    """``name`` with the characters and length that MLflow takes in a key."""
    return cut("".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name), MAX_KEY).replace("…", "_")
