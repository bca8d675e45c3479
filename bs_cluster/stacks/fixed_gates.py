"""A stack whose gates no longer depend on the token is a plain LoRA: how to find its gates, and its two factors.

    δ(x) = Σ_e g_e(x) · s · (x A_eᵀ) B_e    ≈    x A_Mᵀ (diag(s ḡ) B_M),    ḡ_e the mean of g_e over tokens

It is exact where gates are constant, as with ``top_k = experts`` and a router of zeros. Stacks side by side are one
LoRA of their ranks' sum, which can be compressed to the best one of a lower rank (Eckart and Young) without ever making
a matrix of width by width.

Shapes: T tokens, I in_features, O out_features, S stacks, E experts, R rank of an expert, M = S·E·R, P sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bs_cluster.stacks.fused import largest, softmax_of
from bs_cluster.stacks.moments import Observer


class MeanGates(Observer):
    """``sum_PSE``: gates of the stacks ``names`` summed over tokens, no domain gate weights in them; ``tokens_P`` how
    many.

    ``routers(site, names)`` gives the expert routers of these stacks, one under the other (S·E, I).
    """

    def __init__(
        self,
        names: Sequence[str],
        routers: Callable[[int, Sequence[str]], torch.Tensor],
        sites: int,
        experts: int,
        top_k: int,
        device: torch.device | str,
    ):
        self.names, self.routers, self.top_k = tuple(names), routers, top_k
        self.sum_PSE = torch.zeros(sites, len(self.names), experts, dtype=torch.float64, device=device)
        self.tokens_P = torch.zeros(sites, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, site: int, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str]) -> None:
        own = [name for name in active if name in self.names]
        logits_TG = x_TI @ self.routers(site, own).to(x_TI.dtype).t()
        precision = torch.promote_types(logits_TG.dtype, torch.float32)
        logits_SET = logits_TG.t().to(precision).unflatten(0, (len(own), -1))
        gates_SET = softmax_of(logits_SET, largest(logits_SET, self.top_k))
        self.sum_PSE[site, [self.names.index(name) for name in own]] += gates_SET.sum(-1, dtype=torch.float64)
        self.tokens_P[site] += len(x_TI)

    def tensors(self) -> list[torch.Tensor]:
        return [self.sum_PSE, self.tokens_P]

    def mean_PE(self, name: str) -> torch.Tensor:
        """Mean gates of one stack at every site (P, E); of each site they sum to one."""
        return self.sum_PSE[:, self.names.index(name)] / self.tokens_P[:, None]


def lora_factors(
    a_ERI: torch.Tensor, b_ERO: torch.Tensor, gates_E: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One stack's A (E·R, I) and B (O, E·R) under these gates, gates and scale folded into B: its delta is x Aᵀ Bᵀ."""
    weighted_ERO = b_ERO * (gates_E.to(b_ERO.dtype) * scale)[:, None, None]
    return a_ERI.flatten(0, 1), weighted_ERO.flatten(0, 1).t()


def recompressed(a_MI: torch.Tensor, b_OM: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (rank, I) and (O, rank) of the matrix of that rank that is nearest to B A in the Frobenius norm, from a
    singular value decomposition M wide; all of it in float64. Rows beyond its own rank are zero."""
    q_IK, ra_KM = torch.linalg.qr(a_MI.double().t())
    q_OL, rb_LM = torch.linalg.qr(b_OM.double())
    u_LN, s_N, v_NK = torch.linalg.svd(rb_LM @ ra_KM.t(), full_matrices=False)
    kept, root_N = min(rank, len(s_N)), s_N.sqrt()
    small_a_RI, small_b_OR = a_MI.new_zeros(rank, a_MI.shape[1]), b_OM.new_zeros(b_OM.shape[0], rank)
    small_a_RI[:kept] = ((root_N[:, None] * v_NK)[:kept] @ q_IK.t()).to(a_MI.dtype)
    small_b_OR[:, :kept] = (q_OL @ (u_LN * root_N)[:, :kept]).to(b_OM.dtype)
    return small_a_RI, small_b_OR
