"""What MLflow shows of our records: tags, parameters, metrics and the text a person reads. Pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bs_cluster.certificate import Certificate, summary
from bs_cluster.errors import RegistryError
from bs_cluster.records import BundleManifest, DomainRecord, Retirement, RoundOutcome, Spread, StackId, StackManifest

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000

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
    """How a committed stack is found: on its run, its logged model and its model version."""
    return {
        **run_tags(manifest.campaign, manifest.stack),
        "position": str(manifest.position),
        "manifest": digest,
        "committed": "true",
        "parents": cut(" ".join(f"{ref.stack.name}@{ref.manifest[:12]}" for ref in manifest.parents), MAX_TAG),
        "context": cut(" ".join(stack.name for stack in manifest.context), MAX_TAG),
        **{decision(name): loss(manifest.metrics.get(name)) for name in ("val_before", "val_after")},
        "base": manifest.base.model,
        "base_digest": manifest.base.digest,
        "quantization": manifest.base.quantization,
        "config_digest": manifest.config_digest,
        "data_fingerprint": manifest.data_fingerprint,
        "basis": manifest.basis or "none",
        "code_version": manifest.code_version,
    }


def stack_text(manifest: StackManifest, digest: str, store_uri: str, own: Sequence[int]) -> str:
    """The description of a model version of a domain, Markdown; ``own`` are the numbers of the rounds in it."""
    metrics, size = manifest.metrics, sum(entry.size for entry in manifest.files)
    number = manifest.stack.round
    rounds = "this round alone" if len(own) == 1 else f"rounds {own[0]} to {number} together"
    beside = ", ".join(stack.name for stack in manifest.context) or "no other stack"
    confined = f"confined to directions outside basis `{manifest.basis[:12]}`" if manifest.basis else "not confined"
    return (
        f"Round {number} of **{manifest.stack.domain}**: "
        f"{loss(metrics.get('val_before'))} → **{loss(metrics.get('val_after'))}** nats per completion token, "
        f"on the {metrics['rows']:.0f} validation rows that decided.\n\n"
        f"Trained on `{manifest.base.model}` ({manifest.base.quantization}) beside {beside}, {confined}. "
        f"{len(manifest.parents)} stacks were committed before it.\n\n"
        f'This version is the domain as it was then, {rounds}: `mlflow.pyfunc.load_model(…).predict(["your prompt"])` '
        "answers with it where `bs_cluster` is installed, the store can be reached and a bundle holds the round. The "
        f"round's weights ({size / 1e6:.1f} MB, a PEFT adapter) stay in the store `{store_uri}`, manifest `{digest}`; "
        f"all of them as one adapter: `bs_cluster export --domain {manifest.stack.domain}`."
    )


def outcome_tags(outcome: RoundOutcome) -> dict[str, str]:
    """What marks the run of a round that was not committed."""
    return {"committed": "false", "reason": cut(outcome.reason, MAX_TAG)}


def stack_metrics(manifest: StackManifest) -> dict[str, float]:
    """The manifest's metrics, those of the rows that decided under names that say so."""
    return {decision(name): value for name, value in manifest.metrics.items()}


def outcome_metrics(outcome: RoundOutcome) -> dict[str, float]:
    names = (*DECIDED, "steps", "restores", "seconds")
    return {decision(name): float(getattr(outcome, name)) for name in names}


def decision(name: str) -> str:
    """How MLflow calls a round's number: ``decision/val_after`` where the rows that decide about a commit gave it, so
    that nobody takes it for a point of the curve ``selection_loss``, which is of other rows."""
    return f"decision/{name}" if name in DECIDED else name


def domain_text(record: DomainRecord, campaign: str) -> str:
    """The description of a domain's registered model once the domain is closed, Markdown."""
    rounds = [
        f"| {outcome.stack.round} | {loss(outcome.val_before)} | {loss(outcome.val_after)} | {outcome.rows} | "
        f"{'committed' if outcome.committed else 'rejected: ' + outcome.reason} | {outcome.steps} | "
        f"{outcome.seconds:.0f} s |"
        for outcome in record.rounds
    ]
    counts = ", ".join(f"{count} {split}" for split, count in record.data_counts.items())
    return "\n".join(
        [
            f"Domain **{record.domain}**, number {record.position + 1} in the curriculum of `{campaign}`. A version "
            "per committed round, which is the domain with all rounds up to that one; `champion` is the newest.",
            "",
            f"Loss of all validation rows, nats per completion token: {loss(record.base_loss)} on the base → "
            f"**{loss(record.isolated)}** with its own stacks alone. Rows: {counts}.",
            "",
            "| round | before, on the rows that decide | after | rows | outcome | steps | time |",
            "|---|---|---|---|---|---|---|",
            *rounds,
        ]
    )


def removed_text(retirement: Retirement, domain: str, campaign: str) -> str:
    """The description of the registered model of a domain that was removed."""
    return (
        f"Domain **{domain}** was removed from campaign `{campaign}` on {retirement.when[:10]}: {retirement.reason}. "
        "Its versions stay as history, none of them is champion."
    )


def open_domain_text(domain: str, campaign: str) -> str:
    """The description of a domain's registered model while rounds may still come."""
    return f"Stacks of domain **{domain}** in campaign `{campaign}`: a version per committed round. Still training."


def domain_metrics(record: DomainRecord) -> dict[str, float]:
    """The matrix measured on validation rows when this domain closed, as campaign metrics at step ``position``: one
    whose ``validation/<domain>/isolated`` is a flat line was not disturbed by those after it."""
    return {
        **numbers(record.matrix, "validation/"),
        **numbers(record.capacity, "capacity/"),
        "basis_rank_mean": record.basis_rank_mean,
        **{f"energy_held/{side}": spread.mean for side, spread in record.energy_held.items()},
        **_most("delta_overlap_most", record.overlap),
        **_most("foreign_most", record.foreign | record.abroad),
        f"seconds/{record.domain}": record.seconds,
    }


def _most(name: str, spreads: Mapping[str, Spread]) -> dict[str, float]:
    """The largest mean over sites; nothing where nothing was measured."""
    return {name: max(spread.mean for spread in spreads.values())} if spreads else {}


def bundle_tags(manifest: BundleManifest, digest: str) -> dict[str, str]:
    return {
        "campaign": manifest.campaign,
        "kind": "bundle",
        "number": str(manifest.number),
        "manifest": digest,
        "domains": " ".join(manifest.domains),
        "stacks": cut(" ".join(f"{ref.stack.name}@{ref.manifest[:12]}" for ref in manifest.stacks), MAX_TAG),
        "base": manifest.base.model,
        "base_digest": manifest.base.digest,
        "config_digest": manifest.config_digest,
        "code_version": manifest.code_version,
    }


def certificate_tags(certificate: Certificate | None) -> dict[str, str]:
    """What a bundle's version tells of its certificate, which is among its artifacts."""
    return {} if certificate is None else {"certificate": summary(certificate.statements)}


def bundle_text(manifest: BundleManifest, digest: str, store_uri: str) -> str:
    """The description of a model version of the campaign, Markdown."""
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(manifest.metrics.items()))
    return (
        f"Bundle {manifest.number}: `{manifest.base.model}` with {len(manifest.stacks)} stacks over the domains "
        f"{_listed(manifest.domains)}, and the meta-router that gates them.\n\n"
        f'`mlflow.pyfunc.load_model("models:/{manifest.campaign}@champion").predict(["your prompt"])` answers where '
        f"`bs_cluster` is installed and the store `{store_uri}` can be reached; bundle `{digest}`."
        + (f"\n\n| metric | |\n|---|---|\n{metrics}" if metrics else "")
    )


def loss(value: float | None) -> str:
    return "not measured" if value is None or math.isnan(value) else f"{value:.4f}"


def cut(text: str, limit: int) -> str:
    """``text``, or as much of it as fits with an ellipsis to say so."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _key(name: str) -> str:
    """``name`` with the characters and length that MLflow takes in a key."""
    return cut("".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name), MAX_KEY).replace("…", "_")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"**{name}**" for name in names) or "none"
