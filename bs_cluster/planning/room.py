"""How many directions domains claim at a model's sites, one domain after another, and when a width is used up.

A domain claims at most what ``claim_limit`` allows; where ``null_space.energy`` is reached earlier it claims less. So
this is the most that claims take, and the soonest that a width is full.

Shapes: I in_features, O out_features, K directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from bs_cluster.basis import Basis
from bs_cluster.config.schema import NullSpaceSection
from bs_cluster.coordinator.room import check_room
from bs_cluster.errors import StackError
from bs_cluster.records import Record
from bs_cluster.stacks.nullspace import claim_limit

Widths = Mapping[str, tuple[int, int]]  # by site path: what it reads (I), what it writes (O)


@dataclass(frozen=True)
class Room(Record):
    """``scarce`` and ``full`` are the first domains, from 1, that find less than a quarter free at some site, or
    nothing; None where none of those that were looked at does. ``tightest`` is that site and its width."""

    scarce: int | None
    full: int | None
    tightest: str


def claims(widths: Widths, settings: NullSpaceSection, rows: int, domains: int) -> Iterator[Basis]:
    """The combined claims before the first domain, before the second, … and after the last, as shapes. ``rows`` (M) are
    the rank rows of a domain's stacks: it writes into no more directions than that."""
    held = {
        (side, width): 0
        for pair in widths.values()
        for side, width in zip(("input", "output"), pair, strict=True)
        if settings.enabled and settings.space in (side, "both")
    }

    def shapes(side: str, place: int) -> dict[str, torch.Tensor]:
        counts = {path: (pair[place], held.get((side, pair[place]), 0)) for path, pair in widths.items()}
        return {path: torch.empty(size, device="meta") for path, size in counts.items() if size[1]}

    for _ in range(domains + 1):
        yield Basis(shapes("output", 1), shapes("input", 0))
        for (side, width), claimed in held.items():
            limit = claim_limit(width, claimed, max_rank=settings.max_rank, max_share=settings.max_share)
            held[side, width] += min(limit, rows) if side == "output" else limit


def room(bases: Iterator[Basis]) -> Room:
    """What the coordinator would say before each domain that finds these claims."""
    scarce, tightest = None, ""
    for number, basis in enumerate(bases, start=1):
        try:
            told = check_room(basis)
        except StackError as error:
            held = str(error).partition(", so a new stack")[0]
            return Room(scarce, number, tightest or held)
        if told is not None and scarce is None:
            scarce = number
            tightest = f"{told.site} {'reads' if told.side == 'input' else 'writes'} {told.width}"
    return Room(scarce, None, tightest)


def basis_bytes(basis: Basis) -> int:
    """In memory as on disk: fp32."""
    return sum(directions_XK.numel() * directions_XK.element_size() for _, _, directions_XK in basis.entries())
