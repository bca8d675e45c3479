"""The expert router: token-level noisy top-k gates over a stack's experts (Shazeer et al., arXiv 1701.06538).

Shapes: T tokens, I in_features, S stacks, E experts, G = S·E rows of the fused router.
"""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn import functional as F


class _RouterLogits(Function):
    """``x Wᵀ`` with fp32 accuracy from a bf16 ``x``, saving ``x`` itself and not an fp32 copy of it."""

    @staticmethod
    def forward(ctx, x_TI, w_GI):  # type: ignore[override]
        ctx.save_for_backward(x_TI, w_GI)
        return F.linear(x_TI.to(w_GI.dtype), w_GI)

    @staticmethod
    def backward(ctx, dlogits_TG):  # type: ignore[override]
        x_TI, w_GI = ctx.saved_tensors
        dx_TI = (dlogits_TG @ w_GI).to(x_TI.dtype) if ctx.needs_input_grad[0] else None
        dw_GI = dlogits_TG.t() @ x_TI.to(w_GI.dtype) if ctx.needs_input_grad[1] else None
        return dx_TI, dw_GI


def router_logits(x_TI: torch.Tensor, w_GI: torch.Tensor) -> torch.Tensor:
    """Logits (T, G) in the router's own precision, which is fp32 or better whatever the model computes in."""
    return _RouterLogits.apply(x_TI, w_GI)  # type: ignore[return-value]


def top_k_gates(logits_TSE: torch.Tensor, k: int) -> torch.Tensor:
    """Softmax over the k largest logits of each stack, exactly 0 elsewhere; shape (T, S, E)."""
    if k >= logits_TSE.shape[-1]:
        return torch.softmax(logits_TSE, dim=-1)
    values_TSk, index_TSk = logits_TSE.topk(k, dim=-1)
    return torch.zeros_like(logits_TSE).scatter(-1, index_TSk, torch.softmax(values_TSk, dim=-1))


class _AddBalanceGradient(Function):
    """Identity on the router's probabilities whose backward adds the load-balance gradient (see ``balance.py``)."""

    @staticmethod
    def forward(ctx, gates_TE, probs_TE, dprobs_TE):  # type: ignore[override]
        ctx.save_for_backward(dprobs_TE)
        return gates_TE.view_as(gates_TE)

    @staticmethod
    def backward(ctx, dgates_TE):  # type: ignore[override]
        (dprobs_TE,) = ctx.saved_tensors
        return dgates_TE, dprobs_TE, None


def add_balance_gradient(gates_TE: torch.Tensor, probs_TE: torch.Tensor, dprobs_TE: torch.Tensor) -> torch.Tensor:
    """Returns ``gates_TE`` unchanged; in backward ``probs_TE`` receives the constant gradient ``dprobs_TE``.

    The load-balance loss is linear in the probabilities, so its gradient is known before the forward pass. Adding
    it here, at the site, works under activation checkpointing and needs no list of side outputs.
    """
    return _AddBalanceGradient.apply(gates_TE, probs_TE, dprobs_TE)  # type: ignore[return-value]
