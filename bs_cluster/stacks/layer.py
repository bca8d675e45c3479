"""One site: a projection of the base with every stack on it, computed as one block.

    q_proj: Linear4bit                     q_proj: StackLinear
                                             base_layer: Linear4bit           frozen
                                             stack_A      {name: (E, R, I)}   one entry a stack
                                             stack_B      {name: (E, R, O)}
                                             stack_router {name: (E, I)}      fp32
                                             stack_noise  {name: (E, I)}      fp32, used in training only

The entries of frozen stacks are views into one contiguous block, so that ten of them cost two thin products and
no second copy. A stack's place in the block follows (curriculum position, round), never the order of loading.

Shapes: B rows, T tokens, I in_features, O out_features, S stacks, E experts, R rank, G = S·E, M = G·R, K basis rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from torch.nn import functional as F

from bs_cluster.stacks.composition import Composition
from bs_cluster.stacks.config import StackConfig
from bs_cluster.stacks.gating import add_balance_gradient, router_logits, top_k_gates
from bs_cluster.stacks.lowrank import gated_low_rank, rank_activations

PARTS = ("stack_A", "stack_B", "stack_router", "stack_noise")


@dataclass
class FrozenBlock:
    """All frozen stacks of a site, packed: ``a_MI`` and ``b_MO`` in compute dtype, ``router_GI`` in fp32."""

    names: tuple[str, ...]
    a_MI: torch.Tensor
    b_MO: torch.Tensor
    router_GI: torch.Tensor

    def select(self, names: tuple[str, ...], rows: int, gates: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A, B and router of ``names`` (in packed order); a view where they are neighbours, else a copy."""
        if names == self.names:
            return self.a_MI, self.b_MO, self.router_GI
        index = [self.names.index(name) for name in names]
        if index == list(range(index[0], index[0] + len(index))):
            first, last = index[0], index[-1] + 1
            return (
                self.a_MI[first * rows : last * rows],
                self.b_MO[first * rows : last * rows],
                self.router_GI[first * gates : last * gates],
            )
        pieces = [
            [tensor.unflatten(0, (len(self.names), -1))[i] for i in index]
            for tensor in (self.a_MI, self.b_MO, self.router_GI)
        ]
        return torch.cat(pieces[0]), torch.cat(pieces[1]), torch.cat(pieces[2])


class StackLinear(nn.Module, BaseTunerLayer):
    """A wrapped projection. Its forward computes base and stacks fused; PEFT's per-adapter loop is not used."""

    adapter_layer_names = PARTS
    stack_A: nn.ParameterDict
    stack_B: nn.ParameterDict
    stack_router: nn.ParameterDict
    stack_noise: nn.ParameterDict

    def __init__(self, base_layer: nn.Module, site: int, composition: Composition, config: StackConfig):
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.composition = composition
        self.in_features, self.out_features = int(base_layer.in_features), int(base_layer.out_features)  # type: ignore[arg-type]
        self.rank, self.experts, self.top_k = config.rank, config.experts, config.top_k
        self.scale = config.scale
        self.router_init_std = config.router_init_std
        for part in PARTS:
            setattr(self, part, nn.ParameterDict())
        self.block: FrozenBlock | None = None
        # Orthonormal directions that the learning stack must not write into (O, K) or read from (I, K).
        self.basis_OK: torch.Tensor | None = None
        self.basis_IK: torch.Tensor | None = None
        self.weight_cache: torch.Tensor | None = None
        self._disable_adapters = False
        self.merged_adapters = []
        self.register_load_state_dict_post_hook(lambda site, _: site.unpack())

    # --- adding and freezing stacks -------------------------------------------------------------------------

    def update_layer(self, name: str, inference_mode: bool) -> None:
        """Adds an untrained stack: A and router random, B and noise zero, so that the model is unchanged."""
        device = self.device
        experts, rank = self.experts, self.rank
        a_ERI = torch.empty(experts, rank, self.in_features, device=device)
        router_EI = torch.empty(experts, self.in_features, device=device)
        if device.type != "meta":
            bound = 1.0 / math.sqrt(self.in_features)  # Kaiming-uniform with a = sqrt(5)
            nn.init.uniform_(a_ERI, -bound, bound)
            nn.init.normal_(router_EI, std=self.router_init_std)
        self.stack_A[name] = nn.Parameter(a_ERI, requires_grad=not inference_mode)
        self.stack_B[name] = nn.Parameter(torch.zeros(experts, rank, self.out_features, device=device))
        self.stack_router[name] = nn.Parameter(router_EI)
        self.stack_noise[name] = nn.Parameter(torch.zeros(experts, self.in_features, device=device))
        for part in PARTS:
            getattr(self, part)[name].requires_grad_(not inference_mode)

    @property
    def device(self) -> torch.device:
        return self.base_layer.weight.device  # type: ignore[return-value]

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's switch for all stacks at once; unlike PEFT's own it leaves alone which of them learns."""
        self._disable_adapters = not enabled

    def unpack(self) -> None:
        """Forgets the block; the next forward that needs it packs anew. For whoever changed a frozen entry."""
        self.block = None

    @torch.no_grad()
    def _packed(self, dtype: torch.dtype) -> FrozenBlock:
        """The block of all resident stacks; made when a stack came or went, its entries becoming views of it."""
        names = self.composition.resident
        if self.block is not None and self.block.names == names and self.block.a_MI.dtype == dtype:
            return self.block
        a_MI = torch.cat([self.stack_A[n].detach().flatten(0, 1).to(dtype) for n in names])
        b_MO = torch.cat([self.stack_B[n].detach().flatten(0, 1).to(dtype) for n in names])
        router_GI = torch.cat([self.stack_router[n].detach() for n in names])
        block = self.block = FrozenBlock(names, a_MI, b_MO, router_GI)
        for i, name in enumerate(names):
            shape = (self.experts, self.rank, -1)
            self.stack_A[name].data = a_MI.unflatten(0, (len(names), -1))[i].view(shape)
            self.stack_B[name].data = b_MO.unflatten(0, (len(names), -1))[i].view(shape)
            self.stack_router[name].data = router_GI.unflatten(0, (len(names), -1))[i]
        return block

    def effective(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (M, I) and B (M, O) of a learning stack, confined to what the bases leave free.

        ``B_eff = B − (B V) Vᵀ`` row by row: the constraint is part of the parametrisation, so folding it at freeze
        changes nothing (DESIGN: enforcement is exact and survives freezing).
        """
        a_MI, b_MO = self.stack_A[name].flatten(0, 1), self.stack_B[name].flatten(0, 1)
        if self.basis_OK is not None:
            b_MO = b_MO - (b_MO @ self.basis_OK) @ self.basis_OK.t()
        if self.basis_IK is not None:
            a_MI = a_MI - (a_MI @ self.basis_IK) @ self.basis_IK.t()
        return a_MI, b_MO

    def cache_weight(self) -> None:
        """Keeps the dequantised base weight, the same bits that every forward would compute anew."""
        self.weight_cache = dequantize_module_weight(self.base_layer).detach()  # type: ignore[arg-type]

    # --- forward --------------------------------------------------------------------------------------------

    def base_output(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight_cache is None:
            return self.base_layer(x)
        return F.linear(x, self.weight_cache.to(x.dtype), self.base_layer.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base_output(x)
        state = self.composition
        if self._disable_adapters or (not state.active and state.train is None):
            return out
        x_TI = x.reshape(-1, self.in_features)
        if state.active:
            out = out + self._frozen_delta(x_TI).view(out.shape)
        if state.train is not None:
            out = out + self._learning_delta(x_TI, state.train).view(out.shape)
        return out

    def _frozen_delta(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Frozen stacks run without noise, always; autograd stays on, their weights ask for no gradient."""
        state = self.composition
        a_MI, b_MO, router_GI = self._packed(x_TI.dtype).select(state.active, self.experts * self.rank, self.experts)
        logits_TSE = router_logits(x_TI, router_GI).unflatten(1, (len(state.active), self.experts))
        gates_TSE = top_k_gates(logits_TSE, self.top_k) * self.scale
        if state.weights_BS is not None:
            tokens_per_row = x_TI.shape[0] // state.weights_BS.shape[0]
            weights_TS = state.weights_BS.to(gates_TSE.dtype).repeat_interleave(tokens_per_row, dim=0)
            gates_TSE = gates_TSE * weights_TS[..., None]
        gates_TG = gates_TSE.flatten(1)
        if state.moments:
            state.moments[self.site].add(x_TI, rank_activations(x_TI, gates_TG, a_MI), state.active)
        return gated_low_rank(x_TI, gates_TG, a_MI, b_MO)

    def _learning_delta(self, x_TI: torch.Tensor, name: str) -> torch.Tensor:
        gates_TE = self._learning_gates(x_TI, name) * self.scale
        a_MI, b_MO = self.effective(name)
        return gated_low_rank(x_TI, gates_TE, a_MI.to(x_TI.dtype), b_MO.to(x_TI.dtype))

    def _learning_gates(self, x_TI: torch.Tensor, name: str) -> torch.Tensor:
        """Noisy gates in training; the load-balance gradient enters through the probabilities (``balance.py``)."""
        logits_TE = router_logits(x_TI, self.stack_router[name])
        step = self.composition.training
        if not self.training or step is None:
            return top_k_gates(logits_TE, self.top_k)
        if step.noise_PTE is not None:
            spread_TE = F.softplus(router_logits(x_TI, self.stack_noise[name]))
            logits_TE = logits_TE + spread_TE * step.noise_PTE[self.site].to(logits_TE.dtype)
        gates_TE = top_k_gates(logits_TE, self.top_k)
        if step.balance is not None:
            probs_TE = torch.softmax(logits_TE, dim=-1)
            step.balance.count(self.site, probs_TE, gates_TE, step.token_mask_T)
            gradient_E = step.balance.gradient_E(self.site, step.tokens_in_step)
            dprobs_TE = gradient_E.to(probs_TE.dtype).expand_as(probs_TE)
            if step.token_mask_T is not None:
                dprobs_TE = dprobs_TE * step.token_mask_T[:, None].to(probs_TE.dtype)
            gates_TE = add_balance_gradient(gates_TE, probs_TE, dprobs_TE)
        return gates_TE
