"""Directions at the sites of a model: what a domain claims, and all claims so far, which a new domain must leave alone.

Shapes: O out_features, I in_features, K directions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from safetensors.torch import load, save

SIDES = ("output", "input")


@dataclass(frozen=True)
class Basis:
    """Orthonormal directions by site path: of what a site writes (O, K) and of what it reads (I, K).

    A site without an entry, or with one of no columns, is free on that side.
    """

    output: Mapping[str, torch.Tensor] = field(default_factory=dict)
    input: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def from_bytes(cls, data: bytes) -> Basis:
        sides: dict[str, dict[str, torch.Tensor]] = {side: {} for side in SIDES}
        for key, directions_XK in load(data).items():
            side, _, path = key.partition(":")
            sides[side][path] = directions_XK
        return cls(**sides)

    def to_bytes(self) -> bytes:
        """As safetensors; equal bases give equal bytes."""
        tensors = {f"{side}:{path}": directions.contiguous() for side, path, directions in self.entries()}
        return save(dict(sorted(tensors.items())), metadata={"format": "pt"})

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def entries(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Every (side, site path, directions)."""
        for side in SIDES:
            for path, directions_XK in getattr(self, side).items():
                yield side, path, directions_XK

    @classmethod
    def combine(cls, claims: Sequence[Basis]) -> Basis:
        """One orthonormal basis per site and side of everything claimed; directions claimed twice count once."""
        sides = {}
        for side in SIDES:
            of_claims = [getattr(claim, side) for claim in claims]
            paths = sorted(set().union(*of_claims))
            sides[side] = {path: combine([bases[path] for bases in of_claims if path in bases]) for path in paths}
        return cls(**sides)

    @property
    def mean_rank(self) -> float:
        """Mean number of directions of an entry."""
        ranks = [directions_XK.shape[1] for _, _, directions_XK in self.entries()]
        return sum(ranks) / len(ranks) if ranks else 0.0

    def claimed_share(self) -> dict[str, float]:
        """Largest share of directions taken at any site, by the site's width: ``{"640": 0.1, ...}``."""
        taken: dict[str, float] = {}
        for _, _, directions_XK in self.entries():
            width, rank = directions_XK.shape
            taken[str(width)] = max(taken.get(str(width), 0.0), rank / width)
        return taken

    def free_shares(self, sites: Sequence[str]) -> list[float]:
        """Share of directions left free at each of these sites, on the side where it is smaller."""
        free = dict.fromkeys(sites, 1.0)
        for _, path, directions_XK in self.entries():
            width, rank = directions_XK.shape
            free[path] = min(free[path], 1.0 - rank / width)
        return list(free.values())

    def overlap(self, other: Basis) -> float:
        """Mean of ``overlap`` over the sites and sides that both have; 0 where they share none."""
        pairs = [
            overlap(getattr(self, side)[path], getattr(other, side)[path])
            for side in SIDES
            for path in sorted(set(getattr(self, side)) & set(getattr(other, side)))
        ]
        return sum(pairs) / len(pairs) if pairs else 0.0


def combine(bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """One orthonormal basis (O, K) of all these directions, float32; dependent columns are dropped."""
    stacked_OK = torch.cat([basis.double() for basis in bases], dim=1)
    if stacked_OK.shape[1] == 0:
        return stacked_OK.float()
    # Through the K×K Gram matrix: claims are orthogonal up to rounding, so it is as well conditioned as they are.
    values_K, vectors_KK = torch.linalg.eigh(stacked_OK.t() @ stacked_OK)
    keep = values_K > 1e-8
    return (stacked_OK @ (vectors_KK[:, keep] / values_K[keep].sqrt())).float()


def overlap(a_OK: torch.Tensor, b_OK: torch.Tensor) -> float:
    """Mean squared cosine of the principal angles between two claimed subspaces: 1 if one holds the other, 0 apart."""
    smaller = min(a_OK.shape[1], b_OK.shape[1])
    if smaller == 0:
        return 0.0
    return float((a_OK.double().t() @ b_OK.double()).square().sum() / smaller)
