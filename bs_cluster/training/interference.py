"""What domains do to each other, in energies: how much of a delta its claim holds, how much of a later one lies where
an earlier one writes, and how loudly a domain's stacks fire on the tokens of another.

Claims are disjoint because they are made so; none of this is. A claim is cut at a rank, so that part of the domain's
delta lies outside of it, and a later domain that keeps out of the claim may well write there. And to write elsewhere is
not to be silent.

Shares are by site, of sums over tokens and ranks; a record holds their mean over sites and the worst of them. How a
delta lies is taken from all tokens that directions are measured on. Who fires where and what is read is taken from
``SAMPLE_ROWS`` rows of each domain: those are passes of their own.

Shapes: I in_features, O out_features, M rank rows of a domain, K directions, P sites, G domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors.torch import load, save

from bs_cluster.basis import Basis
from bs_cluster.records import CloseDomain, DomainRecord, Spread, StackId
from bs_cluster.stacks.moments import Moments
from bs_cluster.stacks.nullspace import delta_energy, energy_along, energy_span
from bs_cluster.training.session import Session
from bs_cluster.training.streaming import spaced, stream_tokens

SPAN_ENERGY = 0.99  # of a delta lies in what is called the space that it writes in
SAMPLE_ROWS = 16  # of a domain, evenly spaced, for what needs a pass of its own


@dataclass(frozen=True)
class Earlier:
    """A closed domain with stacks: what it claimed, and its delta's W (M, K) by site path (``energy_span``)."""

    domain: str
    stacks: tuple[str, ...]
    claim: Basis
    span: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Interference:
    """The fields of a ``DomainRecord`` of these names; ``span`` still by site path."""

    energy_held: dict[str, Spread] = field(default_factory=dict)
    overlap: dict[str, Spread] = field(default_factory=dict)
    overlap_claimed: dict[str, Spread] = field(default_factory=dict)
    foreign: dict[str, Spread] = field(default_factory=dict)
    abroad: dict[str, Spread] = field(default_factory=dict)
    span: dict[str, torch.Tensor] = field(default_factory=dict)

    def span_bytes(self) -> bytes:
        return save({path: w_MK.float().contiguous() for path, w_MK in sorted(self.span.items())})


def earlier_domains(session: Session) -> list[Earlier]:
    """What was closed with stacks, in curriculum order."""
    stacks = [ref.stack for ref, _ in session.store.stacks()]
    return [_earlier(session, record, stacks) for record in session.store.domains() if record.span is not None]


def _earlier(session: Session, record: DomainRecord, stacks: Sequence[StackId]) -> Earlier:
    assert record.span is not None
    claim = Basis.from_bytes(session.store.get_bytes(record.basis)) if record.basis else Basis()
    names = tuple(stack.name for stack in stacks if stack.domain == record.domain)
    return Earlier(record.domain, names, claim, load(session.store.get_bytes(record.span)))


def measure_interference(
    session: Session, step: CloseDomain, moments: Mapping[str, Moments], claimed: Basis, earlier: Sequence[Earlier]
) -> Interference:
    """Of the domain that closes with these claims and ``moments`` (by site path). All ranks get the same result."""
    own = tuple(stack.name for stack in step.stacks)
    held: dict[str, float] = {}
    crossing: dict[str, dict[str, float]] = {other.domain: {} for other in earlier}
    in_claims: dict[str, dict[str, float]] = {other.domain: {} for other in earlier}
    span: dict[str, torch.Tensor] = {}
    tuner = session.stacked.tuner
    for path, site in zip(tuner.site_names(), tuner.sites, strict=True):
        c_MM, b_MO = moments[path].c_MM.cpu(), site.written(own).cpu()
        span[path] = energy_span(c_MM, b_MO, energy=SPAN_ENERGY)
        total = delta_energy(c_MM, b_MO)
        if not total > 0:
            continue
        if path in claimed.output:
            held[path] = energy_along(c_MM, b_MO, claimed.output[path]) / total
        for other in earlier:
            span_OK = site.written(other.stacks).cpu().double().t() @ other.span[path].double()
            crossing[other.domain][path] = energy_along(c_MM, b_MO, span_OK) / total
            if path in other.claim.output:
                in_claims[other.domain][path] = energy_along(c_MM, b_MO, other.claim.output[path]) / total
    read = _read_share(session, step, Basis.combine([*(other.claim for other in earlier), claimed]))
    foreign, abroad = _firing(session, step.domain, own, earlier)
    return Interference(
        energy_held=_spreads({"output": held, "input": read}, low_is_bad=True),
        overlap=_spreads(crossing),
        overlap_claimed=_spreads(in_claims),
        foreign=_spreads(foreign),
        abroad=_spreads(abroad),
        span=span,
    )


def _read_share(session: Session, step: CloseDomain, claims: Basis) -> dict[str, float]:
    """By site path: how much of what the domain's stacks read, in the context they trained in, lies in ``claims``."""
    if not claims.input:
        return {}
    session.stacked.fire([stack.name for stack in step.context])
    with session.stacked.tuner.measuring_reads(claims.input) as energies:
        rows = spaced(session.rows(step.domain).train, SAMPLE_ROWS)
        stream_tokens(session, step.domain, "what it reads of claims", rows, energies)
    return _ratios(session, energies.energy_P2[:, 1], energies.energy_P2[:, 0])


def _firing(
    session: Session, domain: str, own: Sequence[str], earlier: Sequence[Earlier]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """With all stacks firing, by earlier domain and site path: what its stacks write on this domain's tokens against
    this one's own there, and what this one's write on its tokens against its own there."""
    everything = {other.domain: other.stacks for other in earlier} | {domain: own}
    session.stacked.fire([name for names in everything.values() for name in names])

    def written(tokens_of: str, groups: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
        with session.stacked.tuner.measuring_writes(groups) as energies:
            rows = spaced(session.rows(tokens_of).train, SAMPLE_ROWS)
            stream_tokens(session, domain, f"what fires on rows of {tokens_of}", rows, energies)
        return dict(zip(groups, energies.energy_PG.t(), strict=True))

    foreign, abroad = {}, {}
    at_home = written(domain, everything) if earlier else {}
    for other in earlier:
        foreign[other.domain] = _ratios(session, at_home[other.domain], at_home[domain])
        there = written(other.domain, {other.domain: other.stacks, domain: own})
        abroad[other.domain] = _ratios(session, there[domain], there[other.domain])
    return foreign, abroad


def _ratios(session: Session, part_P: torch.Tensor, whole_P: torch.Tensor) -> dict[str, float]:
    """By site path, where ``whole`` is anything."""
    pairs = zip(session.stacked.tuner.site_names(), part_P.tolist(), whole_P.tolist(), strict=True)
    return {path: part / whole for path, part, whole in pairs if whole > 0}


def _spreads(by_name: Mapping[str, Mapping[str, float]], *, low_is_bad: bool = False) -> dict[str, Spread]:
    spreads = {name: Spread.over(shares, low_is_bad=low_is_bad) for name, shares in by_name.items()}
    return {name: spread for name, spread in spreads.items() if spread is not None}
