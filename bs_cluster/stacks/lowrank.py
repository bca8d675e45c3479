"""The gated low-rank product, the one expensive operation of a stack, forward and backward.

Shapes: T tokens, I in_features, O out_features, G gates (stacks x experts), R rank, M = G·R.

    u = x Aᵀ             T×M
    z = (g ⊗ 1_R) ⊙ u    T×M    the gate acts in rank space: no (T, E, O) tensor exists
    δ = z B              T×O    B holds one row per rank direction, so any run of stacks is a contiguous slice
"""

from __future__ import annotations

import torch
from torch.autograd import Function


class _GatedLowRank(Function):
    @staticmethod
    def forward(ctx, x_TI, gates_TG, a_MI, b_MO):  # type: ignore[override]
        u_TM = x_TI @ a_MI.t()
        z_TM = _gate(u_TM, gates_TG)
        _, needs_gates, needs_a, needs_b = ctx.needs_input_grad
        # A frozen block keeps nothing of x; u alone serves both dgates and (for a trainable B) z.
        ctx.save_for_backward(x_TI if needs_a else None, u_TM if needs_gates or needs_b else None, gates_TG, a_MI, b_MO)
        return z_TM @ b_MO

    @staticmethod
    def backward(ctx, ddelta_TO):  # type: ignore[override]
        x_TI, u_TM, gates_TG, a_MI, b_MO = ctx.saved_tensors
        needs_x, needs_gates, needs_a, needs_b = ctx.needs_input_grad
        dx_TI = dgates_TG = da_MI = db_MO = None
        if needs_b:
            db_MO = _gate(u_TM, gates_TG).t() @ ddelta_TO
        if needs_x or needs_gates or needs_a:
            dz_TM = ddelta_TO @ b_MO.t()
            if needs_gates:
                product_TM = dz_TM * u_TM
                dgates_TG = product_TM.unflatten(1, (gates_TG.shape[1], -1)).sum(-1, dtype=gates_TG.dtype)
            if needs_x or needs_a:
                du_TM = _gate(dz_TM, gates_TG)
                dx_TI = du_TM @ a_MI if needs_x else None
                da_MI = du_TM.t() @ x_TI if needs_a else None
        return dx_TI, dgates_TG, da_MI, db_MO


def _gate(u_TM: torch.Tensor, gates_TG: torch.Tensor) -> torch.Tensor:
    grouped_TGR = u_TM.unflatten(1, (gates_TG.shape[1], -1))
    return (grouped_TGR * gates_TG.to(u_TM.dtype)[..., None]).flatten(1)


def gated_low_rank(x_TI: torch.Tensor, gates_TG: torch.Tensor, a_MI: torch.Tensor, b_MO: torch.Tensor) -> torch.Tensor:
    """δ (T, O). ``gates_TG`` carries the scale and the domain gate weights; gradients flow to whatever asks."""
    return _GatedLowRank.apply(x_TI, gates_TG, a_MI, b_MO)  # type: ignore[return-value]


def rank_activations(x_TI: torch.Tensor, gates_TG: torch.Tensor, a_MI: torch.Tensor) -> torch.Tensor:
    """z (T, M): what the second moment for the null space is taken of."""
    return _gate(x_TI @ a_MI.t(), gates_TG)
