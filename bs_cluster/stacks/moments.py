"""Second moments of what passes a site while tokens stream by: all that a domain's directions are computed from.

Shapes: T tokens, I in_features, M rank rows of the measured stacks, Q sketch columns, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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
        per_stack_TSm = z_TM.unflatten(1, (len(active), -1))
        own_TM = per_stack_TSm[:, [list(active).index(name) for name in self.names]].flatten(1).double()
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


@dataclass
class Measurement:
    """Moments of every site, by site number. ``row_index_T`` is the data row of each token of the batch in flight."""

    sites: dict[int, Moments]
    row_index_T: torch.Tensor | None = None

    def add(self, site: int, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str]) -> None:
        self.sites[site].add(x_TI, z_TM, active, self.row_index_T)
