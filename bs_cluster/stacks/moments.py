"""What is summed up of that which passes a site while tokens stream by: second moments, from which a domain's
directions are computed, and energies, sums of squares.

Shapes: T tokens, I in_features, O out_features, M rank rows of the measured stacks, S stacks that fire, m rank rows of
one, Q sketch columns, K directions, N rows, P sites, G groups of stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


def activations_of(names: Sequence[str], z_TM: torch.Tensor, active: Sequence[str]) -> torch.Tensor:
    """The rank activations (T, M) of the stacks ``names``, among those of all ``active`` in that order; float64."""
    return z_TM.unflatten(1, (len(active), -1))[:, [list(active).index(name) for name in names]].flatten(1).double()


@dataclass
class Moments:
    """Accumulator of one site. ``names`` are the measured stacks; others may fire beside them and only shape ``x``."""

    names: tuple[str, ...]
    c_MM: torch.Tensor
    tokens: torch.Tensor  # how many were added, a scalar
    sketch_IQ: torch.Tensor | None = None
    omega_IQ: torch.Tensor | None = None
    row_sums_NM: torch.Tensor | None = None
    row_tokens_N: torch.Tensor | None = None

    @classmethod
    def empty(
        cls,
        names: Sequence[str],
        m: int,
        *,
        omega_IQ: torch.Tensor | None = None,
        rows: int = 0,
        device: torch.device | str = "cpu",
    ) -> Moments:
        """Nothing seen yet. ``omega_IQ`` asks for a sketch of the inputs, ``rows`` for sums row by row."""
        zeros = {"dtype": torch.float64, "device": device}
        return cls(
            names=tuple(names),
            c_MM=torch.zeros(m, m, **zeros),
            tokens=torch.zeros((), **zeros),
            sketch_IQ=None if omega_IQ is None else torch.zeros_like(omega_IQ),
            omega_IQ=omega_IQ,
            row_sums_NM=torch.zeros(rows, m, **zeros) if rows else None,
            row_tokens_N=torch.zeros(rows, **zeros) if rows else None,
        )

    @torch.no_grad()
    def add(
        self, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str], row_index_T: torch.Tensor | None = None
    ) -> None:
        """Adds a batch. ``z_TM`` holds the rank activations of all ``active`` stacks in that order; ``row_index_T``,
        the data row of each token (packed, no padding), is needed for sums row by row alone."""
        own_TM = activations_of(self.names, z_TM, active)
        self.c_MM += own_TM.t() @ own_TM
        self.tokens += len(own_TM)
        if self.sketch_IQ is not None and self.omega_IQ is not None:
            x_TI = x_TI.float()
            self.sketch_IQ += x_TI.t() @ (x_TI @ self.omega_IQ)
        if self.row_sums_NM is not None and self.row_tokens_N is not None and row_index_T is not None:
            self.row_sums_NM.index_add_(0, row_index_T, own_TM)
            self.row_tokens_N.index_add_(0, row_index_T, torch.ones_like(row_index_T, dtype=torch.float64))

    def tensors(self) -> list[torch.Tensor]:
        """What an all-reduce over workers has to sum."""
        parts = (self.c_MM, self.tokens, self.sketch_IQ, self.row_sums_NM, self.row_tokens_N)
        return [tensor for tensor in parts if tensor is not None]


class Observer:
    """What may watch every site while tokens stream by. ``row_index_T`` is the data row of each token of the batch in
    flight, for those that want it."""

    row_index_T: torch.Tensor | None = None

    def add(self, site: int, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str]) -> None:
        """A batch passes site number ``site``: its inputs, and the rank activations of all ``active`` stacks."""
        raise NotImplementedError

    def tensors(self) -> list[torch.Tensor]:
        """What an all-reduce over workers has to sum."""
        raise NotImplementedError


@dataclass
class Measurement(Observer):
    """Moments of every site, by site number."""

    sites: dict[int, Moments]

    def add(self, site: int, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str]) -> None:
        self.sites[site].add(x_TI, z_TM, active, self.row_index_T)

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for moments in self.sites.values() for tensor in moments.tensors()]


class WrittenEnergy(Observer):
    """``energy_PG``: how much each group of stacks writes at each site, ``Σ_t |z_t B|²``.

    ``groups`` holds each group's stacks by name, all of which must fire; ``written(site, names)`` gives their B (M, O).
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]],
        written: Callable[[int, Sequence[str]], torch.Tensor],
        sites: int,
        device: torch.device | str,
    ):
        self.groups, self.written = groups, written
        self.energy_PG = torch.zeros(sites, len(groups), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, site: int, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str]) -> None:
        for group, names in enumerate(self.groups.values()):
            own_TM = activations_of(names, z_TM, active)
            b_MO = self.written(site, names).double()
            # By the small Gram matrix: a delta (T, O) of each group would be as much again as all stacks write.
            self.energy_PG[site, group] += ((own_TM @ (b_MO @ b_MO.t())) * own_TM).sum()

    def tensors(self) -> list[torch.Tensor]:
        return [self.energy_PG]


class ReadEnergy(Observer):
    """``energy_P2``: how much each site reads, ``Σ_t |x_t|²``, and how much of it in given directions, by site."""

    def __init__(self, directions: Mapping[int, torch.Tensor], sites: int, device: torch.device | str):
        self.directions = {site: basis_IK.to(device) for site, basis_IK in directions.items()}
        self.energy_P2 = torch.zeros(sites, 2, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, site: int, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str]) -> None:
        if site in self.directions:
            x_TI = x_TI.to(torch.promote_types(x_TI.dtype, torch.float32))
            along_TK = x_TI @ self.directions[site].to(x_TI.dtype)
            parts = [part.square().sum(dtype=torch.float64) for part in (x_TI, along_TK)]
            self.energy_P2[site] += torch.stack(parts)

    def tensors(self) -> list[torch.Tensor]:
        return [self.energy_P2]
