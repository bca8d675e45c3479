"""Closing a domain: the directions it claims, and proof of what it moved and did not move."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch

from bs_cluster.data.batch import collate_packed, plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.decoder import decoder_and_head
from bs_cluster.events import Measuring
from bs_cluster.inference.scoring import mean_loss
from bs_cluster.records import SCHEMA_VERSION, CloseDomain, DomainRecord, RoundOutcome, RowLoss
from bs_cluster.stacks.adapter_files import basis_bytes, load_basis
from bs_cluster.stacks.model import StackModel
from bs_cluster.stacks.nullspace import (
    OVERSAMPLE,
    Moments,
    capacity,
    combine,
    input_directions,
    output_directions,
    sampled_directions,
)
from bs_cluster.training.round import INPUT, OUTPUT, round_seed
from bs_cluster.training.session import Session
from bs_cluster.training.trainer import sum_over_ranks, world_rank, world_size


def close_domain(session: Session, step: CloseDomain, outcomes: Sequence[RoundOutcome]) -> DomainRecord:
    """Measures everything a domain's record holds; every rank calls it, the result is the same on all of them."""
    started = time.monotonic()
    rows = session.rows(step.domain)
    isolated = _isolated(session, step)
    matrix = _matrix(session, step, isolated)
    claimed = _claim_directions(session, step) if step.stacks and session.config.null_space.enabled else {}
    basis = session.store.put_bytes("claim.safetensors", basis_bytes(claimed)).sha256 if claimed else None
    ranks = [float(tensor.shape[1]) for tensor in claimed.values()]
    return DomainRecord(
        schema_version=SCHEMA_VERSION,
        domain=step.domain,
        position=step.position,
        rounds=tuple(_rounds(session, step, outcomes)),
        basis=basis,
        basis_rank_mean=sum(ranks) / len(ranks) if ranks else 0.0,
        isolated=mean_loss(isolated),
        base_loss=matrix[step.domain]["base"],
        row_losses=tuple(loss.mean for loss in isolated),
        matrix=matrix,
        capacity=_capacity(session, claimed),
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


def _claim_directions(session: Session, step: CloseDomain) -> dict[str, torch.Tensor]:
    """One streaming pass over the domain's training tokens, in the context it trained in; summed over ranks."""
    tuner, settings = session.stacked.tuner, session.config.null_space
    names = tuple(stack.name for stack in step.stacks)
    session.stacked.fire([stack.name for stack in step.context])
    rows = list(session.rows(step.domain).train)
    if settings.method == "randomized":
        rows = rows[: settings.samples]
    moments = _moments(session, tuner, names, len(rows))
    tuner.composition.moments = moments
    try:
        _stream(session, step.domain, rows, moments)
    finally:
        tuner.composition.moments = {}
    claimed: dict[str, torch.Tensor] = {}
    for path, site in zip(tuner.site_names(), tuner.sites, strict=True):
        moment = moments[site.site]
        b_MO = torch.cat([site.stack_B[name].detach().flatten(0, 1) for name in names]).cpu()
        if settings.space in ("output", "both"):
            claimed[OUTPUT + path] = _output_claim(moment, b_MO, session)
        if moment.sketch_IQ is not None and moment.omega_IQ is not None:
            claimed[INPUT + path] = input_directions(
                moment.sketch_IQ.cpu(), moment.omega_IQ.cpu(), max_rank=settings.max_rank, energy=settings.energy
            )
    return claimed


def _moments(session: Session, tuner: StackModel, names: tuple[str, ...], rows: int) -> dict[int, Moments]:
    settings, device = session.config.null_space, session.stacked.base.model.device
    generator = torch.Generator().manual_seed(round_seed(session.config.seed, "sketch"))
    moments = {}
    for site in tuner.sites:
        m = len(names) * site.experts * site.rank
        moment = Moments(names, torch.zeros(m, m, dtype=torch.float64, device=device))
        if settings.space in ("input", "both"):
            columns = min(settings.max_rank + OVERSAMPLE, site.in_features)
            moment.omega_IQ = torch.randn(site.in_features, columns, generator=generator).to(device)
            moment.sketch_IQ = torch.zeros(site.in_features, columns, device=device)
        if settings.method == "randomized":
            moment.row_sums_NM = torch.zeros(rows, m, dtype=torch.float64, device=device)
            moment.row_tokens_N = torch.zeros(rows, dtype=torch.float64, device=device)
        moments[site.site] = moment
    return moments


@torch.no_grad()
def _stream(session: Session, domain: str, rows: list[EncodedRow], moments: dict[int, Moments]) -> None:
    model = session.stacked.base.model
    decoder, _, _ = decoder_and_head(model)
    plan = plan_batches([len(row.input_ids) for row in rows], session.config.training.eval_batch_tokens)
    for number, batch in enumerate(plan):
        if number % world_size() != world_rank():
            continue
        tensors = collate_packed([rows[i] for i in batch])
        row_index_T = torch.tensor(batch)[tensors["row_index_T"]].to(model.device)
        for moment in moments.values():
            moment.row_index_T = row_index_T
        inputs = {key: tensors[key].to(model.device) for key in ("input_ids", "position_ids")}
        decoder(**inputs, use_cache=False)
        if session.rank == 0:
            session.report(Measuring(domain, number + 1, len(plan)))
    for moment in moments.values():
        for tensor in moment.tensors():
            sum_over_ranks(tensor)


def _output_claim(moment: Moments, b_MO: torch.Tensor, session: Session) -> torch.Tensor:
    settings = session.config.null_space
    if moment.row_sums_NM is not None and moment.row_tokens_N is not None:
        means_NM = (moment.row_sums_NM / moment.row_tokens_N.clamp_min(1)[:, None]).cpu()
        return sampled_directions(means_NM, b_MO, max_rank=settings.max_rank)
    return output_directions(moment.c_MM.cpu(), b_MO, max_rank=settings.max_rank, energy=settings.energy)


def _capacity(session: Session, claimed: dict[str, torch.Tensor]) -> dict[str, float]:
    """Share of output directions claimed by all domains so far, this one included, by output width."""
    claims = [load_basis(session.store.get_bytes(r.basis)) for r in session.store.domains() if r.basis]
    claims.append(claimed)
    sites = {site for claim in claims for site in claim if site.startswith(OUTPUT)}
    return capacity({site: combine([claim[site] for claim in claims if site in claim]) for site in sorted(sites)})
