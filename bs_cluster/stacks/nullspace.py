"""The directions a domain claims, and the ones its successors must leave alone.

A domain's delta at a site is ``δ_t = z_t B`` with ``z_t`` of M = stacks·E·R numbers, so all its directions lie in
the row space of B and the small second moment ``C = Σ_t z_tᵀ z_t`` holds everything: with the thin QR ``Bᵀ = Q R``,
the principal directions of all token deltas are ``Q`` times the eigenvectors of ``R C Rᵀ``. C streams over every
token and adds up across workers; nothing of size O×O ever exists.

The input side (GPM, InfLoRA) wants the principal directions of ``Σ_t x_tᵀ x_t``, which has no small factor. A
Nyström sketch ``Y = Σ_t x_tᵀ (x_t Ω)`` with a fixed Gaussian Ω streams and adds up the same way.

Shapes: T tokens, I in_features, O out_features, M rank rows of the domain, K basis rank, Q sketch columns, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

OVERSAMPLE = 16


@dataclass
class Moments:
    """Accumulator of one site while the tokens of a domain stream by.

    ``names`` are the domain's own stacks; others may fire beside them and only shape ``x``. ``row_index_T`` gives
    the data row of each token of the batch in flight (packed, no padding) and is needed for ``rows`` alone.
    """

    names: tuple[str, ...]
    c_MM: torch.Tensor
    sketch_IQ: torch.Tensor | None = None
    omega_IQ: torch.Tensor | None = None
    row_sums_NM: torch.Tensor | None = None
    row_tokens_N: torch.Tensor | None = None
    row_index_T: torch.Tensor | None = field(default=None, repr=False)

    @torch.no_grad()
    def add(self, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str]) -> None:
        """Adds a batch; ``z_TM`` holds the rank activations of all ``active`` stacks in that order."""
        per_stack_TSm = z_TM.unflatten(1, (len(active), -1))
        own_TM = per_stack_TSm[:, [list(active).index(name) for name in self.names]].flatten(1).double()
        self.c_MM += own_TM.t() @ own_TM
        if self.sketch_IQ is not None and self.omega_IQ is not None:
            x_TI = x_TI.float()
            self.sketch_IQ += x_TI.t() @ (x_TI @ self.omega_IQ)
        if self.row_sums_NM is not None and self.row_tokens_N is not None and self.row_index_T is not None:
            self.row_sums_NM.index_add_(0, self.row_index_T, own_TM)
            self.row_tokens_N.index_add_(0, self.row_index_T, torch.ones_like(self.row_index_T, dtype=torch.float64))

    def tensors(self) -> list[torch.Tensor]:
        """What an all-reduce over workers has to sum."""
        parts = (self.c_MM, self.sketch_IQ, self.row_sums_NM, self.row_tokens_N)
        return [tensor for tensor in parts if tensor is not None]


def output_directions(c_MM: torch.Tensor, b_MO: torch.Tensor, *, max_rank: int, energy: float) -> torch.Tensor:
    """Principal directions (O, K) of all deltas ``z B`` given ``C = Σ zᵀz``, exact, float32, orthonormal columns.

    K is the smaller of ``max_rank`` and the rank that holds ``energy`` of the trace; 0 for a delta of zero.
    """
    q_OM, r_MM = torch.linalg.qr(b_MO.double().t())
    return _leading(q_OM, r_MM @ c_MM @ r_MM.t(), max_rank, energy)


def _leading(q_OM: torch.Tensor, gram_MM: torch.Tensor, max_rank: int, energy: float) -> torch.Tensor:
    values, vectors_MM = torch.linalg.eigh((gram_MM + gram_MM.t()) / 2)
    values, vectors_MM = values.flip(0).clamp_min(0), vectors_MM.flip(1)
    total = values.sum()
    if not total > 0:
        return q_OM.new_zeros((q_OM.shape[0], 0), dtype=torch.float32)
    held = torch.cumsum(values, 0) / total
    rank = min(max_rank, int((held < energy).sum()) + 1, int((values > values[0] * 1e-12).sum()))
    return (q_OM @ vectors_MM[:, :rank]).float()


def sampled_directions(means_NM: torch.Tensor, b_MO: torch.Tensor, *, max_rank: int) -> torch.Tensor:
    """The paper's way, for comparison: randomized SVD of per-sample mean deltas (N, O), no oversampling."""
    deltas_NO = means_NM.float() @ b_MO.float()
    rank = min(max_rank, *deltas_NO.shape)
    if not deltas_NO.any():
        return deltas_NO.new_zeros((b_MO.shape[1], 0))
    _, _, v_OK = torch.svd_lowrank(deltas_NO, q=rank)
    return v_OK


def input_directions(sketch_IQ: torch.Tensor, omega_IQ: torch.Tensor, *, max_rank: int, energy: float) -> torch.Tensor:
    """Principal input directions (I, K) from a Nyström sketch of the input second moment (arXiv 1706.05736)."""
    y_IQ, omega_IQ = sketch_IQ.double(), omega_IQ.double()
    core_QQ = omega_IQ.t() @ y_IQ
    values_Q, vectors_QQ = torch.linalg.eigh((core_QQ + core_QQ.t()) / 2)
    # Below this lies the rounding of a sum in fp32, which leaves the core indefinite: a Cholesky factor may not exist.
    keep = values_Q > values_Q[-1].clamp_min(0) * torch.finfo(torch.float32).eps * len(values_Q)
    root_IQ = y_IQ @ (vectors_QQ[:, keep] / values_Q[keep].sqrt())
    u_IQ, s_Q, _ = torch.linalg.svd(root_IQ, full_matrices=False)
    return _leading(u_IQ, torch.diag(s_Q**2), max_rank, energy)


def combine(bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """One orthonormal basis (O, K) of all directions claimed so far, float32; dependent columns are dropped."""
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


def capacity(bases: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Largest share of directions claimed at any site, by output width: ``{"640": 0.1, ...}``."""
    used: dict[str, float] = {}
    for basis_OK in bases.values():
        width = str(basis_OK.shape[0])
        used[width] = max(used.get(width, 0.0), basis_OK.shape[1] / basis_OK.shape[0])
    return used
