"""All stacks of one site as one operation, forward and backward in closed form.

    l      = W xᵀ      (+ softplus(N xᵀ) ⊙ ε for the stack that learns)        S×E×T, fp32
    p      = softmax over the k largest of each stack's E logits, else 0       S×E×T, fp32
    g      = s · w ⊙ p      s = alpha/sqrt(R), w the domain gate weights       T×G
    u      = x Aᵀ                                                              T×M
    z      = (g ⊗ 1_R) ⊙ u      the gate acts in rank space                    T×M
    out   += z B                                                               T×O

One autograd function, because a site's many small operations cost as much as its products: the sum goes into the
base's own output, nothing of size T×O or T×G×O is made besides, and only ``u`` and ``p`` are kept for backward.
A stack that learns is the last of the block, with noise (Shazeer et al., arXiv 1701.06538) and load balance of its
own; frozen ones ask for no gradient and pass it on to ``x``. Gates are laid out with tokens last, where four experts
are four contiguous rows and not ten thousand tiny ones.

Shapes: T tokens, I in_features, O out_features, S stacks that fire, E experts, R rank, G = S·E, M = G·R,
m = E·R rows of one stack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Watch = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Block:
    """The stacks that fire at a site, packed: A and B in compute dtype, the expert routers in fp32 or better.

    ``weights_ST`` are the domain gate weights of each stack and token, None where all are one. ``watch(x_TI, z_TM)``
    is called with every batch where a domain's directions are measured.
    """

    a_MI: torch.Tensor
    b_MO: torch.Tensor
    router_GI: torch.Tensor
    experts: int
    top_k: int
    scale: float
    weights_ST: torch.Tensor | None = None
    watch: Watch | None = None


@dataclass(frozen=True)
class Learning:
    """What the learning stack's gates have in training. ``noise_ET`` is ε and ``noise_EI`` its trained scale N;
    ``dsoftmax_ET`` is the load-balance loss's gradient for the softmax over all experts, and ``count(softmax_ET,
    p_ET)`` is told how tokens were routed."""

    noise_EI: torch.Tensor | None = None
    noise_ET: torch.Tensor | None = None
    dsoftmax_ET: torch.Tensor | None = None
    count: Watch | None = None


def top_k_softmax(logits_SET: torch.Tensor, k: int) -> torch.Tensor:
    """Softmax over the k largest logits of each stack and token, exactly 0 elsewhere; whatever equals the k-th is in.

    k passes of a maximum, each over whole rows of tokens, are several times faster than sorting T·S tiny rows.
    """
    largest_S1T = logits_SET.amax(1, keepdim=True)
    powers_SET = (logits_SET - largest_S1T).exp_()
    if k < logits_SET.shape[1]:
        kth_S1T, rest_SET = largest_S1T, logits_SET
        for _ in range(k - 1):
            rest_SET = rest_SET.masked_fill(rest_SET >= kth_S1T, -torch.inf)
            kth_S1T = rest_SET.amax(1, keepdim=True)
        powers_SET.masked_fill_(logits_SET < kth_S1T, 0.0)
    return powers_SET.div_(powers_SET.sum(1, keepdim=True))


def add_stacks(
    out: torch.Tensor,
    x: torch.Tensor,
    block: Block,
    learned: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    learning: Learning | None = None,
) -> torch.Tensor:
    """Adds every stack's delta to ``out`` (…, O) in place and returns it; ``x`` (…, I) is what the base was given.

    ``learned`` are the last stack's A (m, I), B (m, O) and router (E, I) as they take part in autograd; their values
    must be in ``block`` already, so that a slice of the packed block serves as it is.
    """
    a_mI, b_mO, router_EI = learned or (None, None, None)
    noise_EI = learning.noise_EI if learning is not None else None
    return _AddStacks.apply(out, x, a_mI, b_mO, router_EI, noise_EI, block, learning or Learning())  # type: ignore[return-value]


class _AddStacks(Function):
    @staticmethod
    def forward(ctx, out, x, a_mI, b_mO, router_EI, noise_EI, block, learning):  # type: ignore[override]
        x_TI = x.reshape(-1, x.shape[-1])
        logits_SET, slope_ET = _logits(x_TI, block, learning)
        p_SET = top_k_softmax(logits_SET, block.top_k)
        softmax_ET = None
        if learning.count is not None:
            softmax_ET = torch.softmax(logits_SET[-1], dim=0)
            learning.count(softmax_ET, p_SET[-1])
        u_TM = x_TI @ block.a_MI.t()
        z_TM = u_TM * _gates(p_SET, block, x.dtype)
        if block.watch is not None:
            block.watch(x_TI, z_TM)
        out.view(-1, out.shape[-1]).addmm_(z_TM, block.b_MO)
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, u_TM, p_SET, softmax_ET, slope_ET)
        ctx.block, ctx.learning = block, learning
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):  # type: ignore[override]
        x, u_TM, p_SET, softmax_ET, slope_ET = ctx.saved_tensors
        block: Block = ctx.block
        learning: Learning = ctx.learning
        x_TI, dout_TO = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
        gates_TM = _gates(p_SET, block, x.dtype)
        dz_TM = dout_TO @ block.b_MO.t()
        dlogits_SET = _through_softmax(_dp(dz_TM, u_TM, block), p_SET)
        if softmax_ET is not None and learning.dsoftmax_ET is not None:
            dlogits_SET[-1] += _through_softmax(learning.dsoftmax_ET, softmax_ET)
        parts, rows = [dlogits_SET.flatten(0, 1)], [block.router_GI]
        if slope_ET is not None and learning.noise_EI is not None:
            parts.append(dlogits_SET[-1] * slope_ET)
            rows.append(learning.noise_EI)
        dlogits_TX, rows_XI = torch.cat(parts).t().to(x.dtype), torch.cat(rows).to(x.dtype)

        _, needs_x, needs_a, needs_b, needs_router, needs_noise, _, _ = ctx.needs_input_grad
        m = block.experts * (u_TM.shape[1] // block.router_GI.shape[0])
        precision = block.router_GI.dtype
        db_mO = da_mI = drouter_EI = dnoise_EI = dx = None
        if needs_b:
            z_Tm = u_TM[:, -m:] * gates_TM[:, -m:]
            db_mO = (z_Tm.t() @ dout_TO).to(precision)
        du_TM = dz_TM.mul_(gates_TM)
        if needs_a:
            da_mI = (du_TM[:, -m:].t() @ x_TI).to(precision)
        if needs_router or needs_noise:
            own_XI = (dlogits_TX[:, -block.experts * len(parts) :].t() @ x_TI).to(precision)
            drouter_EI = own_XI[: block.experts]
            dnoise_EI = own_XI[block.experts :] if needs_noise else None
        if needs_x:
            dx = (du_TM @ block.a_MI).addmm_(dlogits_TX, rows_XI).view_as(x)
        return dout, dx, da_mI, db_mO, drouter_EI, dnoise_EI, None, None


def _logits(x_TI: torch.Tensor, block: Block, learning: Learning) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (S, E, T) in the routers' own precision; with noise also their derivative for ``N x``, (E, T)."""
    noisy = learning.noise_EI is not None and learning.noise_ET is not None
    rows_XI = torch.cat([block.router_GI, learning.noise_EI]) if noisy else block.router_GI  # type: ignore[list-item]
    logits_XT = F.linear(x_TI.to(rows_XI.dtype), rows_XI).t().contiguous()
    groups = logits_XT.unflatten(0, (-1, block.experts))
    if not noisy:
        return groups, None
    logits_SET, spread_ET = groups[:-1], groups[-1]
    logits_SET[-1] += F.softplus(spread_ET).mul_(learning.noise_ET)  # type: ignore[arg-type]
    return logits_SET, torch.sigmoid(spread_ET).mul_(learning.noise_ET)  # type: ignore[arg-type]


def _gates(p_SET: torch.Tensor, block: Block, dtype: torch.dtype) -> torch.Tensor:
    """g, once for each rank direction: (T, M)."""
    gates_SET = p_SET * block.scale
    if block.weights_ST is not None:
        gates_SET.mul_(block.weights_ST[:, None])
    gates_TG = gates_SET.flatten(0, 1).t().to(dtype)
    return gates_TG.repeat_interleave(block.a_MI.shape[0] // block.router_GI.shape[0], dim=1)


def _dp(dz_TM: torch.Tensor, u_TM: torch.Tensor, block: Block) -> torch.Tensor:
    """Gradient of p (S, E, T): what each expert's directions contribute, times scale and gate weight."""
    gates = block.router_GI.shape[0]
    dg_TG = (dz_TM * u_TM).unflatten(1, (gates, -1)).sum(-1, dtype=block.router_GI.dtype)
    dp_SET = dg_TG.t().contiguous().unflatten(0, (-1, block.experts)).mul_(block.scale)
    return dp_SET if block.weights_ST is None else dp_SET.mul_(block.weights_ST[:, None])


def _through_softmax(dp_ET: torch.Tensor, p_ET: torch.Tensor) -> torch.Tensor:
    """Gradient of the logits given that of their softmax, experts on the last but one dimension."""
    return p_ET * (dp_ET - (p_ET * dp_ET).sum(-2, keepdim=True))
