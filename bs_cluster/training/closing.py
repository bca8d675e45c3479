"""Closing a domain: the directions it claims, what it does to the others, and proof of what it did not move."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from bs_cluster.basis import Basis
from bs_cluster.data.frozen import probe_rows
from bs_cluster.estimates import token_mean
from bs_cluster.failpoints import failpoint
from bs_cluster.inference.probe import probe
from bs_cluster.records import SCHEMA_VERSION, CloseDomain, DomainRecord, Probe, RoundOutcome, RowLoss
from bs_cluster.stacks import StackLinear
from bs_cluster.stacks.moments import Moments
from bs_cluster.stacks.nullspace import (
    OVERSAMPLE,
    claim_limit,
    input_directions,
    output_directions,
    outside,
    sampled_directions,
)
from bs_cluster.training.commit_rule import committed_because
from bs_cluster.training.interference import SAMPLE_ROWS, Interference, earlier_domains, measure_interference
from bs_cluster.training.ranks import from_all_ranks
from bs_cluster.training.round import round_seed
from bs_cluster.training.session import Session
from bs_cluster.training.streaming import spaced, stream_tokens


def close_domain(session: Session, step: CloseDomain, outcomes: Sequence[RoundOutcome]) -> DomainRecord:
    """Measures everything a domain's record holds; every rank calls it, the result is the same on all of them."""
    started = time.monotonic()
    rows = session.rows(step.domain)
    isolated = _isolated(session, step)
    matrix = _matrix(session, step, isolated)
    earlier = earlier_domains(session)
    claims = Basis.combine([other.claim for other in earlier])
    claimed, found = Basis(), Interference()
    if step.stacks:
        moments = _moments(session, step, claims)
        if session.config.null_space.enabled:
            failpoint("training.basis")
            claimed = _claim_directions(session, step, moments, claims)
        found = measure_interference(session, step, moments, claimed, earlier)
    return DomainRecord(
        schema_version=SCHEMA_VERSION,
        domain=step.domain,
        position=step.position,
        rounds=tuple(_rounds(session, step, outcomes)),
        basis=_stored(session, "claim.safetensors", claimed.to_bytes()) if any(claimed.entries()) else None,
        basis_rank_mean=claimed.mean_rank,
        isolated=token_mean(isolated),
        base_loss=matrix[step.domain]["base"],
        row_losses=tuple(loss.mean for loss in isolated),
        probe=_probed(session, step),
        matrix=matrix,
        capacity=Basis.combine([claims, claimed]).claimed_share(),
        energy_held=found.energy_held,
        overlap=found.overlap,
        overlap_claimed=found.overlap_claimed,
        foreign=found.foreign,
        abroad=found.abroad,
        span=_stored(session, "span.safetensors", found.span_bytes()) if found.span else None,
        data_fingerprint=rows.fingerprint,
        data_counts=rows.counts,
        rows=_stored(session, "rows.parquet", rows.to_parquet()),
        seconds=time.monotonic() - started,
    )


def _stored(session: Session, name: str, data: bytes) -> str:
    return session.store.put_bytes(name, data).sha256


def _isolated(session: Session, step: CloseDomain) -> list[RowLoss]:
    session.stacked.fire([stack.name for stack in step.stacks])
    return session.score(session.rows(step.domain).validation)


def _probed(session: Session, step: CloseDomain) -> Probe:
    """By rank 0 for all: other ranks may be other machines, and the record names one."""
    found = None
    with session.uneven():
        if session.rank == 0:
            names = [stack.name for stack in step.stacks]
            found = probe(session.stacked, names, probe_rows(session.rows(step.domain).validation))
    first = from_all_ranks(found)[0]
    assert first is not None
    return first


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
            "base": token_mean(session.base_losses[domain]),
            "isolated": token_mean(isolated),
            "ungated": token_mean(session.score(validation)),
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
        rows = int(metrics["rows"])
        outcome = seen.pop(ref.stack, None) or RoundOutcome(
            stack=ref.stack,
            val_before=metrics["val_before"],
            val_after=metrics["val_after"],
            gain=metrics["gain"],
            gain_error=metrics["gain_error"],
            rows=rows,
            committed=True,
            manifest=None,
            steps=int(metrics["steps"]),
            restores=int(metrics["restores"]),
            seconds=0.0,
            reason=committed_because(manifest.objective, metrics),
            objective=manifest.objective,
            entry=manifest.entry,
        )
        rounds.append(dataclasses.replace(outcome, manifest=ref.manifest))
    return rounds + [outcome for outcome in seen.values() if not outcome.committed]


def _moments(session: Session, step: CloseDomain, earlier: Basis) -> dict[str, Moments]:
    """By site path, from one streaming pass over the domain's training tokens in the context it trained in."""
    tuner, settings = session.stacked.tuner, session.config.null_space
    rows = list(session.rows(step.domain).train)
    if not settings.enabled:
        rows = spaced(rows, SAMPLE_ROWS)  # no directions are claimed: enough to say where the delta lies
    elif settings.method == "randomized":
        rows = rows[: settings.samples]
    sketch = _sketch(session, earlier) if settings.enabled and settings.space in ("input", "both") else None
    by_row = len(rows) if settings.method == "randomized" else 0
    session.stacked.fire([stack.name for stack in step.context])
    with tuner.measuring([stack.name for stack in step.stacks], sketch=sketch, rows=by_row) as measurement:
        stream_tokens(session, step.domain, "its directions", rows, measurement)
    return {path: measurement.sites[site.site] for path, site in zip(tuner.site_names(), tuner.sites, strict=True)}


def _claim_directions(session: Session, step: CloseDomain, moments: Mapping[str, Moments], earlier: Basis) -> Basis:
    """Outside of ``earlier`` claims, and as large as those leave room for."""
    tuner, settings = session.stacked.tuner, session.config.null_space
    names = tuple(stack.name for stack in step.stacks)

    def limit(width: int, held_XK: torch.Tensor | None) -> int:
        claimed = 0 if held_XK is None else held_XK.shape[1]
        return claim_limit(width, claimed, max_rank=settings.max_rank, max_share=settings.max_share)

    output: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    for path, site in zip(tuner.site_names(), tuner.sites, strict=True):
        seen = moments[path]
        if settings.space in ("output", "both"):
            held_OK = earlier.output.get(path)
            room = limit(site.out_features, held_OK)
            output[path] = _output_claim(seen, site.written(names).cpu(), room, settings.energy, held_OK)
        if seen.sketch_IQ is not None and seen.omega_IQ is not None:
            held_IK = earlier.input.get(path)
            inputs[path] = input_directions(
                seen.sketch_IQ.cpu(),
                seen.omega_IQ.cpu(),
                max_rank=limit(site.in_features, held_IK),
                energy=settings.energy,
                earlier_IK=held_IK,
            )
    return Basis(output, inputs)


def _sketch(session: Session, earlier: Basis) -> Callable[[StackLinear], torch.Tensor]:
    """Gaussian columns for each site's inputs, outside of earlier claims; the same on every rank."""
    tuner = session.stacked.tuner
    generator = torch.Generator().manual_seed(round_seed(session.config.seed, "sketch"))
    columns = session.config.null_space.max_rank + OVERSAMPLE
    paths = dict(zip((site.site for site in tuner.sites), tuner.site_names(), strict=True))

    def omega(site: StackLinear) -> torch.Tensor:
        drawn_IQ = torch.randn(site.in_features, min(columns, site.in_features), generator=generator)
        return outside(drawn_IQ, earlier.input.get(paths[site.site])).float()

    return omega


def _output_claim(
    moments: Moments, b_MO: torch.Tensor, room: int, energy: float, earlier_OK: torch.Tensor | None
) -> torch.Tensor:
    if moments.row_sums_NM is not None and moments.row_tokens_N is not None:
        means_NM = (moments.row_sums_NM / moments.row_tokens_N.clamp_min(1)[:, None]).cpu()
        return sampled_directions(means_NM, b_MO, max_rank=room, earlier_OK=earlier_OK)
    return output_directions(moments.c_MM.cpu(), b_MO, max_rank=room, energy=energy, earlier_OK=earlier_OK)
