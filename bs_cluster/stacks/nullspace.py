"""The directions in which a domain's delta lies, and how much of its energy lies in given directions.

A domain's delta at a site is ``δ_t = z_t B`` with ``z_t`` of M = stacks·E·R numbers, so all its directions lie in
the row space of B and the small second moment ``C = Σ_t z_tᵀ z_t`` holds everything: with the thin QR ``Bᵀ = Q R``,
the principal directions of all token deltas are ``Q`` times the eigenvectors of ``R C Rᵀ``, and their energy, the sum
of squares, is its trace. C streams over every token and adds up across workers; nothing of size O×O ever exists.

The input side (GPM, InfLoRA) wants the principal directions of ``Σ_t x_tᵀ x_t``, which has no small factor. A
Nyström sketch ``Y = Σ_t x_tᵀ (x_t Ω)`` with a fixed Gaussian Ω streams and adds up the same way.

Shapes: T tokens, I in_features, O out_features, M rank rows of the domain, K basis rank, Q sketch columns, N rows.
"""

from __future__ import annotations

import torch

OVERSAMPLE = 16


def claim_limit(width: int, claimed: int, *, max_rank: int, max_share: float) -> int:
    """How many of a site's ``width`` directions a domain may claim where earlier ones hold ``claimed``: at most
    ``max_rank`` and ``max_share`` of what is free, so that claims shrink with the room; one while there is one."""
    free = width - claimed
    return min(max_rank, free, max(1, int(max_share * free)))


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
    with torch.random.fork_rng(devices=[]):  # it draws from the process's state, which is another on every rank
        torch.manual_seed(0)
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
