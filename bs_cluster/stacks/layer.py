"""One site: a projection of the base with every stack on it, computed as one block.

    q_proj: Linear4bit                     q_proj: StackLinear
                                             base_layer: Linear4bit           frozen
                                             stack_A      {name: (E, R, I)}   one entry a stack
                                             stack_B      {name: (E, R, O)}
                                             stack_router {name: (E, I)}
                                             stack_noise  {name: (E, I)}      used in training only

An adapter of several rounds has their number before these dimensions, and is as many stacks of the block.

The entries of frozen stacks are views into one contiguous block, so that ten of them cost two thin products and
no second copy. A stack's place in the block follows (curriculum position, round), never the order of loading.

Shapes: B rows, T tokens, I in_features, O out_features, S stacks, E experts, R rank, G = S·E, M = G·R, K basis rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight
from torch import nn
from torch.nn import functional as F

from bs_cluster.adapter_format import PARTS
from bs_cluster.stacks.composition import Composition
from bs_cluster.stacks.config import StackConfig
from bs_cluster.stacks.fused import Base, Block, Learning, add_stacks
from bs_cluster.stacks.sharded_base import gathered


@dataclass
class Packed:
    """Stacks of a site in one allocation, in compute dtype, and behind them, where one learns, room for it.

    ``read_XI`` holds, stack by stack, the rows of A and of the expert router, so that one product with ``x`` gives
    both; the room's last E rows are for the noise. ``write_MO`` holds B.
    """

    names: tuple[str, ...]
    spans: dict[str, range]  # which stacks of the block each name is
    room: bool
    read_XI: torch.Tensor
    write_MO: torch.Tensor

    def serves(self, names: tuple[str, ...], learns: bool, dtype: torch.dtype) -> bool:
        return self.names == names and (self.room or not learns) and self.read_XI.dtype == dtype


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
        self.packed: Packed | None = None
        self.chosen: Packed | None = None  # what fires, where it is no slice of ``packed``
        # Orthonormal directions that the learning stack must not write into (O, K) or read from (I, K).
        self.basis_OK: torch.Tensor | None = None
        self.basis_IK: torch.Tensor | None = None
        self.weight_cache: torch.Tensor | None = None
        self._disable_adapters = False
        self.merged_adapters = []
        self.register_load_state_dict_post_hook(lambda site, _: site.unpack())

    # --- adding and freezing stacks -------------------------------------------------------------------------

    def update_layer(self, name: str, rounds: int, inference_mode: bool) -> None:
        """Adds untrained stacks: A and router random, B and noise zero, so that the model is unchanged."""
        device = self.device
        experts, rank = (rounds, self.experts) if rounds > 1 else (self.experts,), self.rank
        a_ERI = torch.empty(*experts, rank, self.in_features, device=device)
        router_EI = torch.empty(*experts, self.in_features, device=device)
        if device.type != "meta":
            bound = 1.0 / math.sqrt(self.in_features)  # Kaiming-uniform with a = sqrt(5)
            nn.init.uniform_(a_ERI, -bound, bound)
            nn.init.normal_(router_EI, std=self.router_init_std)
        self.stack_A[name] = nn.Parameter(a_ERI, requires_grad=not inference_mode)
        self.stack_B[name] = nn.Parameter(torch.zeros(*experts, rank, self.out_features, device=device))
        self.stack_router[name] = nn.Parameter(router_EI)
        self.stack_noise[name] = nn.Parameter(torch.zeros(*experts, self.in_features, device=device))
        for part in PARTS:
            getattr(self, part)[name].requires_grad_(not inference_mode)

    @property
    def device(self) -> torch.device:
        return self.base_layer.weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """That the site computes in."""
        return getattr(self.base_layer, "compute_dtype", None) or self.base_layer.weight.dtype  # type: ignore[return-value]

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's switch for all stacks at once; unlike PEFT's own it leaves alone which of them learns."""
        self._disable_adapters = not enabled

    def park(self, names: Iterable[str]) -> None:
        """These stacks, resident no longer, move to the host's memory, and the block that they were in goes."""
        for name in names:
            self.move(name, torch.device("cpu"))
        packed = self.packed
        self.unpack()
        if packed is not None and self.composition.resident:  # entries that stay would hold the old block as a whole
            self.pack(packed.read_XI.dtype)

    @torch.no_grad()
    def move(self, name: str, device: torch.device) -> None:
        """A frozen stack's entries to that device, out of any block, in the dtype that they are computed with."""
        for part in PARTS:
            entry = getattr(self, part)[name]
            entry.data = entry.detach().to(device, self.dtype, copy=True)

    def unpack(self) -> None:
        """Forgets the block; the next forward that needs it packs anew. For whoever changed a frozen entry."""
        self.packed = self.chosen = None

    @torch.no_grad()
    def pack(self, dtype: torch.dtype) -> Packed:
        """The block of all resident stacks; made when a stack came or went, its entries becoming views of it."""
        names, learns = self.composition.resident, self.composition.train is not None
        if self.packed is not None and self.packed.serves(names, learns, dtype):
            return self.packed
        packed = self.packed = self.allocate(names, learns, dtype)
        self.chosen = None
        m, width = self.experts * self.rank, self.experts * (self.rank + 1)
        for name, span in packed.spans.items():
            read_SxI = packed.read_XI[span.start * width : span.stop * width].unflatten(0, (len(span), width))
            places = {
                "stack_A": read_SxI[:, :m],
                "stack_B": packed.write_MO[span.start * m : span.stop * m],
                "stack_router": read_SxI[:, m:],
            }
            for part, place in places.items():
                entry = getattr(self, part)[name]
                entry.data = place.view(entry.shape).copy_(entry)
        return packed

    def allocate(self, names: tuple[str, ...], room: bool, dtype: torch.dtype) -> Packed:
        """A block for these stacks, not yet filled, with ``room`` for one that learns."""
        spans, stacks, m = {}, 0, self.experts * self.rank
        for name in names:
            spans[name] = range(stacks, stacks + self.composition.rounds.get(name, 1))
            stacks = spans[name].stop
        stacks += room
        empty = partial(torch.empty, dtype=dtype, device=self.device)
        read_XI = empty(stacks * (m + self.experts) + room * self.experts, self.in_features)
        return Packed(names, spans, room, read_XI, empty(stacks * m, self.out_features))

    def _read_rows(self, packed: Packed, place: int) -> torch.Tensor:
        width = self.experts * (self.rank + 1)
        return packed.read_XI[place * width : (place + 1) * width]

    @torch.no_grad()
    def _rows(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of what fires, with room for the learning stack at their end if there is one, its noise included.

        A slice of the packed block where what fires stands side by side in it; else a copy, kept until something
        else fires.
        """
        packed, names, learns = self.pack(dtype), self.composition.active, self.composition.train is not None
        places = [place for name in names for place in packed.spans[name]]
        end = max((span.stop for span in packed.spans.values()), default=0)
        first = places[0] if places else end
        stop = first + len(places)
        if places == list(range(first, stop)) and (stop == end or not learns):
            return self._slice(packed, first, stop, learns)
        if self.chosen is None or not self.chosen.serves(names, learns, dtype):
            chosen, m = self.allocate(names, learns, dtype), self.experts * self.rank
            for i, place in enumerate(places):
                self._read_rows(chosen, i).copy_(self._read_rows(packed, place))
                chosen.write_MO[i * m : (i + 1) * m] = packed.write_MO[place * m : (place + 1) * m]
            self.chosen = chosen
        return self._slice(self.chosen, 0, len(places), learns)

    def _slice(self, packed: Packed, first: int, stop: int, learns: bool) -> tuple[torch.Tensor, torch.Tensor]:
        m, width = self.experts * self.rank, self.experts * (self.rank + 1)
        if learns:
            return packed.read_XI[first * width :], packed.write_MO[first * m :]
        return packed.read_XI[first * width : stop * width], packed.write_MO[first * m : stop * m]

    def confine(self, output_OK: torch.Tensor | None, input_IK: torch.Tensor | None) -> None:
        """Directions that the learning stack must not write into and not read from; none, or no columns: free."""
        self.basis_OK = None if output_OK is None or not output_OK.shape[1] else output_OK.to(self.device)
        self.basis_IK = None if input_IK is None or not input_IK.shape[1] else input_IK.to(self.device)

    def written(self, names: Sequence[str]) -> torch.Tensor:
        """B (M, O) of these stacks, one under the other, as it is computed with: rounded to the base's dtype.

        A rank that no batch has reached yet still holds its stacks in fp32, as loaded; what is made of B must be the
        same on all of them.
        """
        return torch.cat([self.stack_B[name].detach().to(self.dtype).flatten(0, -2) for name in names])

    def effective(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (M, I) and B (M, O) of a learning stack, confined to what the bases leave free.

        ``B_eff = B − (B V) Vᵀ`` row by row: the constraint is part of the parametrisation, so folding it at freeze
        changes nothing (DESIGN: enforcement is exact and survives freezing). That is why a bf16 base has these products
        in fp32 too: in bf16 a stack was stored with another loss than it had in training, by 0.005 nats.
        """
        a_MI, b_MO = self.stack_A[name].flatten(0, -2), self.stack_B[name].flatten(0, -2)
        if self.basis_OK is not None:
            b_MO = b_MO - (b_MO @ self.basis_OK) @ self.basis_OK.t()
        if self.basis_IK is not None:
            a_MI = a_MI - (a_MI @ self.basis_IK) @ self.basis_IK.t()
        return a_MI, b_MO

    def cache_weight(self) -> None:
        """Keeps the dequantised base weight, the same bits that every forward would compute anew."""
        self.weight_cache = self.base_weight()

    # --- forward --------------------------------------------------------------------------------------------

    def base_weight(self) -> torch.Tensor:
        """The frozen base's weight (O, I) in compute dtype, dequantised anew where it is not cached."""
        if self.weight_cache is not None:
            return self.weight_cache
        gathered(self.base_layer)
        if type(self.base_layer.weight).__name__ == "Params4bit":
            return dequantize_bnb_weight(self.base_layer.weight)  # type: ignore[arg-type]  PEFT's general way is slow
        return dequantize_module_weight(self.base_layer).detach()  # type: ignore[arg-type]

    def base_output(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight_cache is None:
            return self.base_layer(x)
        return F.linear(x, self.weight_cache.to(x.dtype), self.base_layer.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.composition
        if state.undecided:
            state.warn_of_undecided()
        if self._disable_adapters or (not state.active and state.train is None):
            return self.base_output(x)
        read_XI, write_MO = self._rows(x.dtype)
        observer = state.observer
        block = Block(
            read_XI,
            write_MO,
            self.experts,
            self.rank,
            self.top_k,
            self.scale,
            weights_ST=state.token_weights(x.numel() // self.in_features),
            watch=None if observer is None else partial(observer.add, self.site, active=state.active),
        )
        if torch.is_grad_enabled() and (x.requires_grad or state.train is not None):
            base = Base(lambda: self.base_weight().to(x.dtype), self.base_layer.bias)  # type: ignore[arg-type]
        else:
            base = self.base_output(x)
        if state.train is None:
            return add_stacks(base, x, block)
        return self._add_with_learner(base, x, block, state.train)

    def _add_with_learner(self, base: torch.Tensor | Base, x: torch.Tensor, block: Block, name: str) -> torch.Tensor:
        """Writes the learner's weights of this moment into its room in the block, then adds all stacks."""
        a_mI, b_mO = self.effective(name)
        router_EI, noise_EI = self.stack_router[name], self.stack_noise[name]
        learning = self._learning()
        m, experts = block.rows, self.experts
        with torch.no_grad():
            own_XI = block.read_XI[-(m + 2 * experts) :]
            own_XI[:m], own_XI[m : m + experts], own_XI[m + experts :] = a_mI, router_EI, noise_EI
            block.write_MO[-m:] = b_mO
        if learning.noise_ET is None:
            block = replace(block, read_XI=block.read_XI[:-experts])
        return add_stacks(base, x, block, (a_mI, b_mO, router_EI, noise_EI), learning)

    def _learning(self) -> Learning:
        """Noise and load balance of the micro-batch in flight; nothing in eval mode."""
        step = self.composition.training
        if not self.training or step is None:
            return Learning()
        noise_ET = None if step.noise_PET is None else step.noise_PET[self.site]
        if step.balance is None:
            return Learning(noise_ET)
        return Learning(
            noise_ET,
            dsoftmax_ET=step.balance.gradient_ET(self.site, step.tokens_in_step, step.token_mask_T),
            count=partial(step.balance.count, self.site, mask_T=step.token_mask_T),
        )
