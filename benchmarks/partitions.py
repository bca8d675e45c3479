"""The paper's second form of a language model from frozen parts (its section 5.1.1): every domain has transformer
blocks of its own, which read the embeddings and write into a part of the residual stream that no other domain's do.

    h = base(e) + Σ_d P_d O_d blocks_d(R_d e)          P_dᵀ P_c = 0 for any two domains

``e`` are the embeddings, ``base`` the frozen random layers, and norm and head follow as ever. ``P`` deals out the
columns of one random orthogonal matrix, so that deltas cannot meet, whatever they are. ``benchmarks.psn`` holds it
against stacks.

Shapes: B rows, T tokens, H hidden, W width of the blocks, Q columns of a domain, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from bs_cluster.decoder import decoder_and_head


class Blocks(nn.Module):
    """One domain's, in fp32: what is learned, and the columns (H, Q) that they write into. At first they write none."""

    def __init__(self, config: PreTrainedConfig, columns_HQ: torch.Tensor):
        super().__init__()
        hidden, columns = columns_HQ.shape
        self.reads = nn.Linear(hidden, config.hidden_size, bias=False)
        self.layers: Any = AutoModel.from_config(config, dtype=torch.float32)
        self.layers.embed_tokens = nn.Identity()  # it is given what it reads
        self.writes = nn.Linear(config.hidden_size, columns, bias=False)
        nn.init.zeros_(self.writes.weight)
        self.columns_HQ = columns_HQ

    def forward(self, embedded_BTH: torch.Tensor, **places: Any) -> torch.Tensor:
        read_BTW = self.reads(embedded_BTH.float())
        seen_BTW = self.layers(inputs_embeds=read_BTW, use_cache=False, **places).last_hidden_state
        return self.writes(seen_BTW) @ self.columns_HQ.t()


class Partitioned(nn.Module):
    """A causal language model of the frozen ``base`` and the blocks that are on, for whoever takes one."""

    def __init__(self, base: nn.Module, blocks: Sequence[Blocks]):
        super().__init__()
        self.base, self.blocks = base, nn.ModuleList(blocks)
        self.config: Any = base.config
        decoder, self.head, _ = decoder_and_head(base)
        self.decoder = _Decoder(decoder, self.blocks)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, **inputs: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.decoder(**inputs).last_hidden_state))


class _Decoder(nn.Module):
    """The base's decoder, the blocks' deltas added before its final norm."""

    def __init__(self, decoder: nn.Module, blocks: nn.ModuleList):
        super().__init__()
        self.decoder, self.blocks = decoder, blocks

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False, **places: Any) -> Any:
        decoder: Any = self.decoder
        embedded_BTH = decoder.embed_tokens(input_ids)
        deltas = [blocks(embedded_BTH, **places) for blocks in self.blocks]

        def added(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (sum(deltas, inputs[0].float()).to(inputs[0].dtype),)

        hook = decoder.norm.register_forward_pre_hook(added)
        try:
            return decoder(input_ids=input_ids, use_cache=use_cache, **places)
        finally:
            hook.remove()


def partitions(hidden: int, domains: int, seed: int) -> list[torch.Tensor]:
    """As many columns (H, Q) a domain as all can have, orthonormal over all of them."""
    generator = torch.Generator().manual_seed(seed)
    basis_HH, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator, dtype=torch.float64))
    columns = hidden // domains
    return [basis_HH[:, n * columns : (n + 1) * columns].float() for n in range(domains)]


def parameters_of(config: PreTrainedConfig, columns_HQ: torch.Tensor) -> int:
    """What one domain's blocks of this shape learn."""
    with torch.device("meta"):
        blocks = Blocks(without_words(config), columns_HQ.to("meta"))
    return sum(parameter.numel() for parameter in blocks.parameters())


def without_words(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same layers, for blocks that are given what they read."""
    bare = copy.deepcopy(config)
    bare.vocab_size, bare.pad_token_id = 1, None
    return bare
