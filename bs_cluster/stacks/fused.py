"""All stacks of one site as one operation, forward and backward in closed form.

    [u, l] = x [A, W]ᵀ                                                        T×S×m, T×S×E
    l     += softplus(x Nᵀ) ⊙ ε      for the stack that learns                 S×E×T, fp32 from here
    p      = softmax over the k largest of each stack's E logits, else 0       S×E×T
    g      = s · w ⊙ p      s = alpha/sqrt(R), w the domain gate weights       T×G
    z      = (g ⊗ 1_R) ⊙ u      the gate acts in rank space                    T×M
    out   += z B                                                               T×O

One autograd function, because a site's many small operations cost as much as its products: A and the expert router
are one product, the sum goes into the base's own output, nothing of size T×O or T×G×O is made besides, and only
``[u, l]`` and ``p`` are kept for backward. A stack that learns is the last of the block, with noise (Shazeer et al.,
arXiv 1701.06538) and load balance of its own; frozen ones ask for no gradient and pass it on to ``x``.

Logits are products of the compute dtype, gates are fp32: what bf16 activations are rounded by already moves a logit
as much as rounding W and the product does, and an fp32 product of a few columns costs more than that of A.
Gates are laid out with tokens last, where four experts are four contiguous rows and not ten thousand tiny ones.

Shapes: T tokens, I in_features, O out_features, S stacks that fire, E experts, R rank, G = S·E, M = G·R,
m = E·R rows of one stack, X = S·(m + E) rows of A and router, stack by stack, and E of N if its noise is trained.
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
    """The stacks that fire at a site, packed, in compute dtype.

    ``weights_ST`` are the domain gate weights of each stack and token, None where all are one. ``watch(x_TI, z_TM)``
    is called with every batch where a domain's directions are measured.
    """

    read_XI: torch.Tensor
    write_MO: torch.Tensor
    experts: int
    rank: int
    top_k: int
    scale: float
    weights_ST: torch.Tensor | None = None
    watch: Watch | None = None

    @property
    def stacks(self) -> int:
        return self.write_MO.shape[0] // self.rows

    @property
    def rows(self) -> int:
        """m, the rank directions of one stack."""
        return self.experts * self.rank


@dataclass(frozen=True)
class Base:
    """The frozen projection under the stacks. ``weight()`` gives (O, I) in compute dtype, perhaps dequantised for the
    moment; it is asked once in forward and once in backward."""

    weight: Callable[[], torch.Tensor]
    bias_O: torch.Tensor | None = None


@dataclass(frozen=True)
class Learning:
    """What the learning stack's gates have in training. ``noise_ET`` is ε; ``dsoftmax_ET`` is the load-balance
    loss's gradient for the softmax over all experts, and ``count(softmax_ET, chosen_ET)`` is told where tokens went."""

    noise_ET: torch.Tensor | None = None
    dsoftmax_ET: torch.Tensor | None = None
    count: Watch | None = None


def largest(logits_SET: torch.Tensor, k: int) -> torch.Tensor:
    """Which k experts of each stack and token have the largest logits (bool); of equal ones the first. Just k always:
    products of bf16 do come out equal, and a router may start at zero.

    An expert is out once k others beat it. Comparing all experts with those d places further on takes E - 1 passes over
    whole rows of tokens, which is several times faster than sorting T·S tiny rows.
    """
    experts = logits_SET.shape[1]
    beaten_SET = torch.zeros(logits_SET.shape, dtype=torch.int8, device=logits_SET.device)
    for d in range(1, experts):
        first_SeT = logits_SET[:, :-d] >= logits_SET[:, d:]
        beaten_SET[:, d:] += first_SeT
        beaten_SET[:, :-d] += first_SeT.logical_not_()
    return beaten_SET < k


def softmax_of(logits_SET: torch.Tensor, chosen_SET: torch.Tensor) -> torch.Tensor:
    """Softmax over each stack's and token's chosen experts, exactly 0 elsewhere."""
    powers_SET = (logits_SET - logits_SET.amax(1, keepdim=True)).exp_().masked_fill_(~chosen_SET, 0.0)
    return powers_SET.div_(powers_SET.sum(1, keepdim=True))


def add_stacks(
    base: torch.Tensor | Base,
    x: torch.Tensor,
    block: Block,
    learned: tuple[torch.Tensor, ...] | None = None,
    learning: Learning | None = None,
) -> torch.Tensor:
    """The base's output (…, O) plus every stack's delta; ``x`` (…, I) is what the base was given.

    ``base`` is its output, which is changed in place, or the projection itself, which is then computed and
    differentiated in the same operation. ``learned`` are the last stack's A (m, I), B (m, O), router (E, I) and noise
    (E, I) as they take part in autograd; their values must be in ``block`` already, so that a slice of the packed
    block serves as it is.
    """
    out, under = (None, base) if isinstance(base, Base) else (base, None)
    return _AddStacks.apply(out, x, *(learned or (None,) * 4), under, block, learning or Learning())  # type: ignore[return-value]


class _AddStacks(Function):
    @staticmethod
    def forward(ctx, out, x, a_mI, b_mO, router_EI, noise_EI, base, block, learning):  # type: ignore[override]
        x_TI = x.reshape(-1, x.shape[-1])
        if base is None:
            ctx.mark_dirty(out)
        else:
            out = F.linear(x, base.weight(), base.bias_O)
        ul_TX = x_TI @ block.read_XI.t()
        logits_SET, slope_ET = _logits(ul_TX, block, learning)
        chosen_SET = largest(logits_SET, block.top_k)
        p_SET = softmax_of(logits_SET, chosen_SET)
        softmax_ET = None
        if learning.count is not None:
            softmax_ET = torch.softmax(logits_SET[-1], dim=0)
            learning.count(softmax_ET, chosen_SET[-1])
        z_TM = (_by_stack(ul_TX, block)[..., : block.rows] * _gates(p_SET, block, x.dtype)).flatten(1)
        if block.watch is not None:
            block.watch(x_TI, z_TM)
        out.view(-1, out.shape[-1]).addmm_(z_TM, block.write_MO)
        ctx.save_for_backward(x, ul_TX, p_SET, softmax_ET, slope_ET)
        ctx.base, ctx.block, ctx.learning = base, block, learning
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):  # type: ignore[override]
        x, ul_TX, p_SET, softmax_ET, slope_ET = ctx.saved_tensors
        base: Base | None = ctx.base
        block: Block = ctx.block
        learning: Learning = ctx.learning
        _, needs_x, needs_a, needs_b, needs_router, needs_noise, *_ = ctx.needs_input_grad
        x_TI, dout_TO = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
        m, experts = block.rows, block.experts
        u_TSm = _by_stack(ul_TX, block)[..., :m]
        gates_TSm = _gates(p_SET, block, x.dtype)
        dz_TSm = (dout_TO @ block.write_MO.t()).unflatten(1, (-1, m))
        dul_TX = torch.empty_like(ul_TX)
        dul_TSx = _by_stack(dul_TX, block)
        torch.mul(dz_TSm, gates_TSm, out=dul_TSx[..., :m])
        dlogits_SET = _through_softmax(_dp(dz_TSm.mul_(u_TSm), block), p_SET)
        if softmax_ET is not None and learning.dsoftmax_ET is not None:
            dlogits_SET[-1] += _through_softmax(learning.dsoftmax_ET, softmax_ET)
        dul_TSx[..., m:] = dlogits_SET.permute(2, 0, 1)
        if slope_ET is not None:
            dul_TX[:, -experts:] = (dlogits_SET[-1] * slope_ET).t()

        dx = da_mI = db_mO = drouter_EI = dnoise_EI = None
        if needs_x:
            dx_TI = dul_TX @ block.read_XI if base is None else (dout_TO @ base.weight()).addmm_(dul_TX, block.read_XI)
            dx = dx_TI.view_as(x)
        if needs_b:
            db_mO = (u_TSm[:, -1] * gates_TSm[:, -1]).t() @ dout_TO
        if needs_a or needs_router or needs_noise:
            own = m + experts * (1 if slope_ET is None else 2)
            da_mI, drouter_EI, dnoise_EI = (dul_TX[:, -own:].t() @ x_TI).tensor_split((m, m + experts))
        if slope_ET is None:  # zero, not none: ZeRO's hooks want a gradient of every parameter
            dnoise_EI = x_TI.new_zeros(experts, x_TI.shape[1]) if needs_noise else None
        return dout if base is None else None, dx, da_mI, db_mO, drouter_EI, dnoise_EI, None, None, None


def _by_stack(ul_TX: torch.Tensor, block: Block) -> torch.Tensor:
    """(T, S, m + E), without the columns of N."""
    width = block.rows + block.experts
    return ul_TX[:, : block.stacks * width].unflatten(1, (-1, width))


def _logits(ul_TX: torch.Tensor, block: Block, learning: Learning) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (S, E, T) in fp32 or better; with noise also their derivative for ``N x``, (E, T)."""
    precision = torch.promote_types(ul_TX.dtype, torch.float32)
    clean_SET = _by_stack(ul_TX, block)[..., block.rows :].permute(1, 2, 0)
    logits_SET = clean_SET.to(precision, memory_format=torch.contiguous_format)
    if learning.noise_ET is None:
        return logits_SET, None
    spread_ET = ul_TX[:, -block.experts :].t().to(precision, memory_format=torch.contiguous_format)
    logits_SET[-1] += F.softplus(spread_ET).mul_(learning.noise_ET)
    return logits_SET, spread_ET.sigmoid_().mul_(learning.noise_ET)


def _gates(p_SET: torch.Tensor, block: Block, dtype: torch.dtype) -> torch.Tensor:
    """g, once for each rank direction: (T, S, m)."""
    gates_SET = p_SET * block.scale
    if block.weights_ST is not None:
        gates_SET.mul_(block.weights_ST[:, None])
    return gates_SET.permute(2, 0, 1).to(dtype, memory_format=torch.contiguous_format).repeat_interleave(block.rank, -1)


def _dp(dg_TSm: torch.Tensor, block: Block) -> torch.Tensor:
    """Gradient of p (S, E, T) from that of g in each rank direction: summed over R, times scale and gate weight."""
    precision = torch.promote_types(dg_TSm.dtype, torch.float32)
    dg_TSE = dg_TSm.unflatten(-1, (block.experts, -1)).sum(-1, dtype=precision)
    dp_SET = dg_TSE.permute(1, 2, 0).contiguous().mul_(block.scale)
    return dp_SET if block.weights_ST is None else dp_SET.mul_(block.weights_ST[:, None])


def _through_softmax(dp_ET: torch.Tensor, p_ET: torch.Tensor) -> torch.Tensor:
    """Gradient of the logits given that of their softmax, experts on the last but one dimension."""
    return p_ET * (dp_ET - (p_ET * dp_ET).sum(-2, keepdim=True))
