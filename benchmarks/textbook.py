"""The form of a mixture of LoRA experts that one finds written down: every expert's output is made, then weighted.

With the gradient that the published scripts drop, so that what is compared computes the same thing as ours.

Shapes: B rows, T tokens, I in_features, O out_features, E experts, R rank.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class TextbookStack(nn.Module):
    def __init__(self, site: nn.Module, rank: int, experts: int, top_k: int, scale: float, learns: bool):
        super().__init__()
        inputs, outputs, device = site.in_features, site.out_features, site.weight.device
        self.a_ERI = nn.Parameter(torch.randn(experts, rank, inputs, device=device) / inputs**0.5, learns)
        self.b_ERO = nn.Parameter(torch.randn(experts, rank, outputs, device=device) * 1e-3, learns)
        self.router_EI = nn.Parameter(torch.randn(experts, inputs, device=device) * 0.02, learns)
        self.noise_EI = nn.Parameter(torch.zeros(experts, inputs, device=device), learns)
        self.top_k, self.scale, self.learns = top_k, scale, learns
        if not learns:
            self.a_ERI.data, self.b_ERO.data = self.a_ERI.data.bfloat16(), self.b_ERO.data.bfloat16()

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        x32_BTI = x_BTI.float()
        logits_BTE = x32_BTI @ self.router_EI.t()
        if self.learns:
            noise_BTE = torch.randn_like(logits_BTE)
            logits_BTE = logits_BTE + noise_BTE * F.softplus(x32_BTI @ self.noise_EI.t())
        values, index = logits_BTE.topk(self.top_k, dim=-1)
        gates_BTE = torch.zeros_like(logits_BTE).scatter(-1, index, torch.softmax(values, dim=-1))
        low_BTER = torch.einsum("bti,eri->bter", x_BTI, self.a_ERI.to(x_BTI.dtype))
        out_BTEO = torch.einsum("bter,ero->bteo", low_BTER, self.b_ERO.to(x_BTI.dtype))
        return self.scale * (out_BTEO * gates_BTE.to(x_BTI.dtype)[..., None]).sum(dim=-2)


class TextbookSite(nn.Module):
    """A projection with stacks applied one after another; the last one learns if ``learns``."""

    def __init__(self, base: nn.Module, stacks: int, learns: bool, **sizes: float):
        super().__init__()
        self.base = base
        last = stacks - 1 if learns else -1
        self.stacks = nn.ModuleList(TextbookStack(base, learns=number == last, **sizes) for number in range(stacks))

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        out = self.base(x_BTI)
        for stack in self.stacks:
            out = out + stack(x_BTI)
        return out


def wrap(model: nn.Module, names: set[str], stacks: int, learns: bool, **sizes: float) -> nn.Module:
    """Replaces every projection called one of ``names``, in place."""
    for path, module in list(model.named_modules()):
        parent, _, child = path.rpartition(".")
        if child in names and hasattr(module, "in_features"):
            setattr(model.get_submodule(parent), child, TextbookSite(module, stacks, learns, **sizes))
    return model
