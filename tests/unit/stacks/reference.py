"""The equations of DESIGN.md section 3 written out, one expert and one stack after another, for autograd to
differentiate. Slow and obvious; shares nothing with the product but the names of a stack's four tensors.

Shapes: B rows, T tokens, I in_features, O out_features, E experts, R rank, K basis rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class PlainStack:
    """``row_weights_B`` is the stack's gate weight for each row of the batch; ``noise_TE`` is what its router adds."""

    a_ERI: torch.Tensor
    b_ERO: torch.Tensor
    router_EI: torch.Tensor
    noise_EI: torch.Tensor
    row_weights_B: torch.Tensor | None = None
    noise_TE: torch.Tensor | None = None
    basis_OK: torch.Tensor | None = None
    basis_IK: torch.Tensor | None = None

    def logits_TE(self, x_TI: torch.Tensor) -> torch.Tensor:
        logits_TE = x_TI @ self.router_EI.t()
        if self.noise_TE is not None:
            logits_TE = logits_TE + torch.log1p(torch.exp(x_TI @ self.noise_EI.t())) * self.noise_TE
        return logits_TE

    def delta(self, x_TI: torch.Tensor, k: int, scale: float) -> torch.Tensor:
        gates_TE = softmax_over_largest(self.logits_TE(x_TI), k)
        total_TO = torch.zeros(x_TI.shape[0], self.b_ERO.shape[2], dtype=x_TI.dtype)
        for e in range(self.a_ERI.shape[0]):
            a_RI, b_RO = project_off(self.a_ERI[e], self.basis_IK), project_off(self.b_ERO[e], self.basis_OK)
            total_TO = total_TO + scale * gates_TE[:, e : e + 1] * ((x_TI @ a_RI.t()) @ b_RO)
        if self.row_weights_B is None:
            return total_TO
        rows = torch.arange(x_TI.shape[0]) // (x_TI.shape[0] // len(self.row_weights_B))
        return total_TO * self.row_weights_B[rows][:, None]


def softmax_over_largest(logits_TE: torch.Tensor, k: int) -> torch.Tensor:
    """Softmax of the k largest entries of each row, the first of equal ones, zero elsewhere."""
    order_TE = logits_TE.argsort(dim=1, descending=True, stable=True)
    gates_TE = torch.zeros_like(logits_TE)
    for t in range(logits_TE.shape[0]):
        chosen = order_TE[t, :k]
        powers = torch.exp(logits_TE[t, chosen] - logits_TE[t, chosen].max().detach())
        gates_TE[t, chosen] = powers / powers.sum()
    return gates_TE


def project_off(rows_RX: torch.Tensor, basis_XK: torch.Tensor | None) -> torch.Tensor:
    """Every row without its part along each basis direction."""
    if basis_XK is None:
        return rows_RX
    out_RX = rows_RX
    for k in range(basis_XK.shape[1]):
        v_X = basis_XK[:, k]
        out_RX = out_RX - (rows_RX @ v_X)[:, None] * v_X[None]
    return out_RX


def balance_loss(logits_TE: torch.Tensor, f_E: torch.Tensor, k: int, mask_T: torch.Tensor) -> torch.Tensor:
    """N/k · Σ_t Σ_e p_te f_e over real tokens, not divided by their number; f carries no gradient."""
    total = logits_TE.new_zeros(())
    for t in range(logits_TE.shape[0]):
        probs_E = torch.softmax(logits_TE[t], dim=0)
        total = total + mask_T[t] * sum(probs_E[e] * f_E[e] for e in range(len(f_E)))
    return total * len(f_E) / k


class PlainSite(nn.Module):
    """A projection with stacks added one after another. ``cuts_gradient`` is the published flaw: the base and the
    frozen stacks (all but the last) are computed without autograd."""

    def __init__(self, linear: nn.Linear, stacks: list[PlainStack], k: int, scale: float, cuts_gradient: bool = False):
        super().__init__()
        self.linear, self.stacks, self.k, self.scale, self.cuts_gradient = linear, stacks, k, scale, cuts_gradient

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        with torch.set_grad_enabled(not self.cuts_gradient):
            out_TO = x_TI @ self.linear.weight.t()
            if self.linear.bias is not None:
                out_TO = out_TO + self.linear.bias
            for stack in self.stacks[:-1]:
                out_TO = out_TO + stack.delta(x_TI, self.k, self.scale)
        if self.stacks:
            out_TO = out_TO + self.stacks[-1].delta(x_TI, self.k, self.scale)
        return out_TO.view(*x.shape[:-1], -1)


def replace_projections(model: nn.Module, sites: Mapping[str, PlainSite]) -> None:
    for path, site in sites.items():
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, site)
