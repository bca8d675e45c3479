"""Closing a domain: the directions it claims, and proof of what it moved and did not move."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from bs_cluster.config.schema import NullSpaceSection
from bs_cluster.data.batch import collate_packed, plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.decoder import decoder_and_head
from bs_cluster.events import Measuring
from bs_cluster.inference.scoring import mean_loss
from bs_cluster.records import SCHEMA_VERSION, CloseDomain, DomainRecord, RoundOutcome, RowLoss
from bs_cluster.stacks import StackLinear
from bs_cluster.stacks.basis import Basis
from bs_cluster.stacks.moments import Measurement, Moments
from bs_cluster.stacks.nullspace import OVERSAMPLE, input_directions, output_directions, sampled_directions
from bs_cluster.training.checkpoint import forget_other_rounds
from bs_cluster.training.ranks import sum_over_ranks, world_rank, world_size
from bs_cluster.training.round import round_seed
from bs_cluster.training.session import Session


def close_domain(session: Session, step: CloseDomain, outcomes: Sequence[RoundOutcome]) -> DomainRecord:
    """Measures everything a domain's record holds; every rank calls it, the result is the same on all of them."""
    forget_other_rounds(session.store, None)
    started = time.monotonic()
    rows = session.rows(step.domain)
    isolated = _isolated(session, step)
    matrix = _matrix(session, step, isolated)
    claimed = _claim_directions(session, step) if step.stacks and session.config.null_space.enabled else None
    claims = [*_earlier_claims(session), *([claimed] if claimed else [])]
    return DomainRecord(
        schema_version=SCHEMA_VERSION,
        domain=step.domain,
        position=step.position,
        rounds=tuple(_rounds(session, step, outcomes)),
        basis=session.store.put_bytes("claim.safetensors", claimed.to_bytes()).sha256 if claimed else None,
        basis_rank_mean=claimed.mean_rank if claimed else 0.0,
        isolated=mean_loss(isolated),
        base_loss=matrix[step.domain]["base"],
        row_losses=tuple(loss.mean for loss in isolated),
        matrix=matrix,
        capacity=Basis.combine(claims).claimed_share(),
        data_fingerprint=rows.fingerprint,
        data_counts=rows.counts,
        rows=session.store.put_bytes("rows.parquet", rows.to_parquet()).sha256,
        seconds=time.monotonic() - started,
    )


def _isolated(session: Session, step: CloseDomain) -> list[RowLoss]:
    session.stacked.fire([stack.name for stack in step.stacks])
    return session.score(session.rows(step.domain).validation)


def _matrix(session: Session, step: CloseDomain, own: list[RowLoss]) -> dict[str, dict[str, float]]:
    """For every domain closed so far and this one: loss of the base, with its own stacks only (``own`` for this one),
    with all of them."""
    stacks = [ref.stack for ref, _ in session.store.stacks()]
    domains = [*(record.domain for record in session.store.domains()), step.domain]
    matrix: dict[str, dict[str, float]] = {}
    for domain in domains:
        validation = session.rows(domain).validation
        if domain not in session.base_losses:
            session.stacked.fire([])
            session.base_losses[domain] = session.score(validation)
        isolated = own
        if domain != step.domain:
            session.stacked.fire([stack.name for stack in stacks if stack.domain == domain])
            isolated = session.score(validation)
        session.stacked.fire([stack.name for stack in stacks])
        matrix[domain] = {
            "base": mean_loss(session.base_losses[domain]),
            "isolated": mean_loss(isolated),
            "ungated": mean_loss(session.score(validation)),
        }
    return matrix


def _rounds(session: Session, step: CloseDomain, outcomes: Sequence[RoundOutcome]) -> list[RoundOutcome]:
    """How each round ended: ``outcomes`` as the coordinator saw them; for what an earlier coordinator saw, the
    manifest, which knows all but the time it took (manifests hold no time, so that a rerun has the same digest)."""
    seen = {outcome.stack: outcome for outcome in outcomes}
    rounds = []
    for ref, manifest in session.store.stacks():
        if ref.stack not in step.stacks:
            continue
        metrics = manifest.metrics
        outcome = seen.pop(ref.stack, None) or RoundOutcome(
            stack=ref.stack,
            val_before=metrics["val_before"],
            val_after=metrics["val_after"],
            gain=metrics["gain"],
            gain_error=metrics["gain_error"],
            rows=int(metrics["rows"]),
            committed=True,
            manifest=None,
            steps=int(metrics["steps"]),
            restores=int(metrics["restores"]),
            seconds=0.0,
            reason="committed before the coordinator was restarted",
        )
        rounds.append(dataclasses.replace(outcome, manifest=ref.manifest))
    return rounds + [outcome for outcome in seen.values() if not outcome.committed]


def _claim_directions(session: Session, step: CloseDomain) -> Basis:
    """One streaming pass over the domain's training tokens, in the context it trained in; summed over ranks."""
    tuner, settings = session.stacked.tuner, session.config.null_space
    names = tuple(stack.name for stack in step.stacks)
    session.stacked.fire([stack.name for stack in step.context])
    rows = list(session.rows(step.domain).train)
    if settings.method == "randomized":
        rows = rows[: settings.samples]
    sketch = _sketch(session) if settings.space in ("input", "both") else None
    by_row = len(rows) if settings.method == "randomized" else 0
    with tuner.measuring(names, sketch=sketch, rows=by_row) as measurement:
        _stream(session, step.domain, rows, measurement)
    output: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    for path, site in zip(tuner.site_names(), tuner.sites, strict=True):
        moments = measurement.sites[site.site]
        if settings.space in ("output", "both"):
            output[path] = _output_claim(moments, site.written(names).cpu(), settings)
        if moments.sketch_IQ is not None and moments.omega_IQ is not None:
            inputs[path] = input_directions(
                moments.sketch_IQ.cpu(), moments.omega_IQ.cpu(), max_rank=settings.max_rank, energy=settings.energy
            )
    return Basis(output, inputs)


def _sketch(session: Session) -> Callable[[StackLinear], torch.Tensor]:
    """Gaussian columns for each site's inputs, the same on every rank."""
    generator = torch.Generator().manual_seed(round_seed(session.config.seed, "sketch"))
    columns = session.config.null_space.max_rank + OVERSAMPLE
    return lambda site: torch.randn(site.in_features, min(columns, site.in_features), generator=generator)


@torch.no_grad()
def _stream(session: Session, domain: str, rows: list[EncodedRow], measurement: Measurement) -> None:
    model = session.stacked.base.model
    decoder, _, _ = decoder_and_head(model)
    plan = plan_batches([len(row.input_ids) for row in rows], session.config.training.eval_batch_tokens)
    for number, batch in enumerate(plan):
        if number % world_size() != world_rank():
            continue
        tensors = collate_packed([rows[i] for i in batch])
        measurement.row_index_T = torch.tensor(batch)[tensors["row_index_T"]].to(model.device)
        inputs = {key: tensors[key].to(model.device) for key in ("input_ids", "position_ids")}
        decoder(**inputs, use_cache=False)
        if session.rank == 0:
            session.report(Measuring(domain, number + 1, len(plan)))
    for moments in measurement.sites.values():
        for tensor in moments.tensors():
            sum_over_ranks(tensor)


def _output_claim(moments: Moments, b_MO: torch.Tensor, settings: NullSpaceSection) -> torch.Tensor:
    if moments.row_sums_NM is not None and moments.row_tokens_N is not None:
        means_NM = (moments.row_sums_NM / moments.row_tokens_N.clamp_min(1)[:, None]).cpu()
        return sampled_directions(means_NM, b_MO, max_rank=settings.max_rank)
    return output_directions(moments.c_MM.cpu(), b_MO, max_rank=settings.max_rank, energy=settings.energy)


def _earlier_claims(session: Session) -> list[Basis]:
    return [Basis.from_bytes(session.store.get_bytes(r.basis)) for r in session.store.domains() if r.basis]
