"""The directions in which a domain's delta lies, and how much of its energy lies in given directions.

A domain's delta at a site is ``δ_t = z_t B`` with ``z_t`` of M = stacks·E·R numbers, so all its directions lie in
the row space of B and the small second moment ``C = Σ_t z_tᵀ z_t`` holds everything: with the thin QR ``Bᵀ = Q R``,
the principal directions of all token deltas are ``Q`` times the eigenvectors of ``R C Rᵀ``, and their energy, the sum
of squares, is its trace. C streams over every token and adds up across workers; nothing of size O×O ever exists.

The input side (GPM, InfLoRA) wants the principal directions of ``Σ_t x_tᵀ x_t``, which has no small factor. A
Nyström sketch ``Y = Σ_t x_tᵀ (x_t Ω)`` with a fixed Gaussian Ω streams and adds up the same way.

A claim is taken outside of what earlier domains claimed: of ``P M P`` with ``P = I − VVᵀ`` instead of the moment M. So
claims are orthogonal, and what they take of a site adds up.

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


def outside(x_XN: torch.Tensor, claimed_XK: torch.Tensor | None) -> torch.Tensor:
    """Columns of ``x`` less their parts in the orthonormal directions ``claimed``, float64; None claims nothing."""
    x_XN = x_XN.double()
    if claimed_XK is None:
        return x_XN
    claimed_XK = claimed_XK.double()
    for _ in range(2):  # stored in float32 they are orthonormal to 1e-7: what that leaves goes the second time
        x_XN = x_XN - claimed_XK @ (claimed_XK.t() @ x_XN)
    return x_XN


def output_directions(
    c_MM: torch.Tensor, b_MO: torch.Tensor, *, max_rank: int, energy: float, earlier_OK: torch.Tensor | None = None
) -> torch.Tensor:
    """Principal directions (O, K) of all deltas ``z B`` given ``C = Σ zᵀz``, exact, float32, orthonormal columns, and
    orthogonal to what was claimed ``earlier``.

    K is the smaller of ``max_rank`` and the rank that holds ``energy`` of the trace; 0 for a delta of zero.
    """
    q_OM, r_MM = torch.linalg.qr(outside(b_MO.t(), earlier_OK))
    return _leading(q_OM, r_MM @ c_MM @ r_MM.t(), max_rank, energy, delta_energy(c_MM, b_MO))


def _leading(
    q_OM: torch.Tensor, gram_MM: torch.Tensor, max_rank: int, energy: float, before: float = 0.0
) -> torch.Tensor:
    """``before`` is the energy of which ``gram`` holds what is left: beside it, what only rounding left is nothing."""
    values, vectors_MM = _eigen(gram_MM)
    rank = min(max_rank, _rank_holding(values, energy, before))
    return (q_OM @ vectors_MM[:, :rank]).float()


def _eigen(gram_MM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, the largest first, none below zero, and eigenvectors in columns."""
    values, vectors_MM = torch.linalg.eigh((gram_MM + gram_MM.t()) / 2)
    return values.flip(0).clamp_min(0), vectors_MM.flip(1)


def _rank_holding(values: torch.Tensor, energy: float, before: float = 0.0) -> int:
    total = values.sum()
    if not total > 0:
        return 0
    held = torch.cumsum(values, 0) / total
    return min(int((held < energy).sum()) + 1, int((values > max(float(values[0]), before) * 1e-12).sum()))


def delta_energy(c_MM: torch.Tensor, b_MO: torch.Tensor) -> float:
    """``Σ_t |z_t B|²`` of all deltas, given ``C = Σ zᵀz``."""
    b_MO = b_MO.double()
    return float((c_MM * (b_MO @ b_MO.t())).sum())


def energy_along(c_MM: torch.Tensor, b_MO: torch.Tensor, directions_OK: torch.Tensor) -> float:
    """``Σ_t |z_t B V|²``: how much of that energy lies in the orthonormal ``directions``."""
    along_MK = b_MO.double() @ directions_OK.double()
    return float((along_MK * (c_MM @ along_MK)).sum())


def energy_span(c_MM: torch.Tensor, b_MO: torch.Tensor, *, energy: float) -> torch.Tensor:
    """W (M, K): the principal directions that hold ``energy`` of all deltas ``z B`` are the columns of ``Bᵀ W``.

    By the M×M matrices alone, ``C^½ B Bᵀ C^½ = U Λ Uᵀ`` and ``W = C^½ U Λ^-½``: whoever has B needs W, not O×K numbers.
    """
    values, vectors_MM = _eigen(c_MM)
    root_MM = (vectors_MM * values.sqrt()) @ vectors_MM.t()
    rows_MO = root_MM @ b_MO.double()
    values, vectors_MM = _eigen(rows_MO @ rows_MO.t())
    rank = _rank_holding(values, energy)
    return root_MM @ (vectors_MM[:, :rank] / values[:rank].sqrt())


def sampled_directions(
    means_NM: torch.Tensor, b_MO: torch.Tensor, *, max_rank: int, earlier_OK: torch.Tensor | None = None
) -> torch.Tensor:
    """The paper's way, for comparison: randomized SVD of per-sample mean deltas (N, O), no oversampling."""
    deltas_NO = means_NM.double() @ outside(b_MO.t(), earlier_OK).t()
    before = float((means_NM.double() @ b_MO.double()).norm())
    rank = min(max_rank, *deltas_NO.shape)
    with torch.random.fork_rng(devices=[]):  # it draws from the process's state, which is another on every rank
        torch.manual_seed(0)
        _, values_K, v_OK = torch.svd_lowrank(deltas_NO, q=rank)
    return v_OK[:, values_K > before * 1e-6].float()  # beside it, what only rounding left is nothing


def input_directions(
    sketch_IQ: torch.Tensor,
    omega_IQ: torch.Tensor,
    *,
    max_rank: int,
    energy: float,
    earlier_IK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Principal input directions (I, K) from a Nyström sketch of the input second moment (arXiv 1706.05736), outside of
    what was claimed ``earlier``: the sketch must have been taken with an ``omega`` that lies outside of it too.

    Then ``P Y = P M P Ω`` is a sketch of ``P M P``, and no token had to be projected.
    """
    y_IQ, omega_IQ = outside(sketch_IQ, earlier_IK), omega_IQ.double()
    if not y_IQ.norm() > torch.finfo(torch.float32).eps * 8 * sketch_IQ.double().norm():
        return y_IQ.new_zeros((y_IQ.shape[0], 0), dtype=torch.float32)  # all of it is rounding
    core_QQ = omega_IQ.t() @ y_IQ
    values_Q, vectors_QQ = torch.linalg.eigh((core_QQ + core_QQ.t()) / 2)
    # Below this lies the rounding of a sum in fp32, which leaves the core indefinite: a Cholesky factor may not exist.
    keep = values_Q > values_Q[-1].clamp_min(0) * torch.finfo(torch.float32).eps * len(values_Q)
    root_IQ = y_IQ @ (vectors_QQ[:, keep] / values_Q[keep].sqrt())
    u_IQ, s_Q, _ = torch.linalg.svd(root_IQ, full_matrices=False)
    return _leading(u_IQ, torch.diag(s_Q**2), max_rank, energy)
