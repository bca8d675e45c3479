"""Rounds of a domain merged into one stack of the same shape: least squares at every site, in closed form.

Rounds have expert routers of their own, so one stack cannot be their sum. It keeps the first round's router, whose
gates are ``p``, and gets the experts that come nearest to the sum ``δ`` on the domain's own tokens:

    δ_t = z_t B      ≈      Σ_e φ_te W_e,     φ_te = s p_e(x_t) x_t Aᵀ,     W_e of rank R

with A and B of all rounds one under the other. ``Σ_t |δ_t − Σ_e φ_te W_e|²`` needs the second moments of φ and z alone.
Given the other experts the best W_e is a reduced-rank regression (Izenman, 1975), so experts are fitted in turns, and
the error never grows. What the new stack reads is a combination of rows of A, what it writes one of rows of B: whatever
the rounds were kept out of, it is kept out of too.

Shapes: T tokens, I in_features, O out_features, E experts, R rank, M rank rows of all rounds, F = E·M, L ≤ M
dimensions that B spans, P sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bs_cluster.stacks.fused import largest, softmax_of
from bs_cluster.stacks.moments import Observer, activations_of

SWEEPS = 20  # times that every expert is fitted
RIDGE = 1e-6  # of the mean second moment: directions that no token reached decide nothing

Reads = tuple[torch.Tensor, torch.Tensor]  # A (M, I) of all rounds, the first one's expert router (E, I)


@dataclass(frozen=True)
class Merged:
    """One site's new experts, and the share of the rounds' written energy that they miss."""

    a_ERI: torch.Tensor
    b_ERO: torch.Tensor
    missed: float


class MergeMoments(Observer):
    """``gram_PXX``: second moments of φ and behind it z (X = F + M) at every site, of the stacks ``names``; others may
    fire beside them and only shape x. ``reads(site)`` gives what a site's stacks read with."""

    def __init__(
        self,
        names: Sequence[str],
        reads: Callable[[int], Reads],
        sites: int,
        rows: int,
        experts: int,
        top_k: int,
        scale: float,
        device: torch.device | str,
    ):
        self.names, self.reads, self.top_k, self.scale = tuple(names), reads, top_k, scale
        width = (experts + 1) * rows
        self.gram_PXX = torch.zeros(sites, width, width, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, site: int, x_TI: torch.Tensor, z_TM: torch.Tensor, active: Sequence[str]) -> None:
        a_MI, router_EI = self.reads(site)
        # As the layer computes: products of the compute dtype, gates in fp32.
        precision = torch.promote_types(x_TI.dtype, torch.float32)
        logits_1ET = (x_TI @ router_EI.to(x_TI.dtype).t()).t()[None].to(precision)
        gates_TE = self.scale * softmax_of(logits_1ET, largest(logits_1ET, self.top_k))[0].t()
        reached_TM = x_TI @ a_MI.to(x_TI.dtype).t()
        phi_TF = (gates_TE[:, :, None].double() * reached_TM[:, None].double()).flatten(1)
        both_TX = torch.cat([phi_TF, activations_of(self.names, z_TM, active)], dim=1)
        self.gram_PXX[site] += both_TX.t() @ both_TX

    def tensors(self) -> list[torch.Tensor]:
        return [self.gram_PXX]


def merge(gram_XX: torch.Tensor, a_MI: torch.Tensor, b_MO: torch.Tensor, experts: int, rank: int) -> Merged:
    """The experts (E, R, ·) of rank ``rank`` that come nearest to all rounds, from one site's second moments."""
    m = len(a_MI)
    gram_XX = gram_XX.cpu()
    q_OL, r_LM = torch.linalg.qr(b_MO.double().cpu().t())
    h_FF, cross_FM, c_MM = gram_XX[:-m, :-m], gram_XX[:-m, -m:], gram_XX[-m:, -m:]
    wanted_FL = cross_FM @ r_LM.t()
    blocks = [slice(e * m, (e + 1) * m) for e in range(experts)]
    inverses = [_inverse_root(h_FF[block, block]) for block in blocks]
    w_FL = torch.zeros_like(wanted_FL)
    factors = [(w_FL[block, :0], w_FL[:0]) for block in blocks]
    for _ in range(SWEEPS):
        for e, (block, inverse_MM) in enumerate(zip(blocks, inverses, strict=True)):
            left_ML = wanted_FL[block] - h_FF[block] @ w_FL + h_FF[block, block] @ w_FL[block]
            # The unconstrained best is H⁻¹ left; in the metric of H the nearest of rank R is its truncation.
            u_MN, s_N, v_NL = torch.linalg.svd(inverse_MM @ left_ML, full_matrices=False)
            half_N = s_N[:rank].sqrt()
            factors[e] = inverse_MM @ (u_MN[:, :rank] * half_N), half_N[:, None] * v_NL[:rank]
            w_FL[block] = factors[e][0] @ factors[e][1]
    whole = float((r_LM @ c_MM * r_LM).sum())
    missed = whole - 2 * float((w_FL * wanted_FL).sum()) + float((w_FL * (h_FF @ w_FL)).sum())
    a_MI = a_MI.double().cpu()
    return Merged(
        a_ERI=torch.stack([read_MR.t() @ a_MI for read_MR, _ in factors]).float(),
        b_ERO=torch.stack([write_RL @ q_OL.t() for _, write_RL in factors]).float(),
        missed=missed / whole if whole > 0 else 0.0,
    )


def _inverse_root(h_MM: torch.Tensor) -> torch.Tensor:
    """``H^-½`` of a second moment."""
    ridge = RIDGE * float(h_MM.diagonal().mean()) + torch.finfo(torch.float64).tiny
    values_M, vectors_MM = torch.linalg.eigh((h_MM + h_MM.t()) / 2)
    return (vectors_MM / (values_M.clamp_min(0) + ridge).sqrt()) @ vectors_MM.t()
