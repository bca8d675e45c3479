"""A tiny base with trained-looking stacks on it, as ``StackedBase`` holds it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny import Kind, save_tiny_base

from bs_cluster.base.load import load_base
from bs_cluster.config.schema import BaseSection, StackSection
from bs_cluster.inference.stacked import StackedBase, stack_config
from bs_cluster.records import StackId

SETTINGS = StackSection(rank=4)


def tiny_stacked_base(
    folder: Path, kind: Kind, stacks: Sequence[StackId], spread: float = 0.1, *, nf4: bool = False
) -> StackedBase:
    """``stacks`` in curriculum order, all firing; what a stack holds follows from its name. ``nf4``: in bf16 too."""
    path = save_tiny_base(folder, kind)
    how = ("nf4", "bfloat16") if nf4 else ("none", "float32")
    base = load_base(BaseSection(model=path, quantization=how[0], compute_dtype=how[1]), device="cpu")  # type: ignore[arg-type]
    stacked = StackedBase(base, cache_dequantized=False)
    for position, stack in enumerate(stacks):
        seed = zlib.crc32(stack.name.encode())
        name = stacked.begin(stack_config(SETTINGS, stack, position), seed)
        generator = torch.Generator().manual_seed(seed)
        for site in stacked.tuner.sites:
            b_ERO = site.stack_B[name].data
            b_ERO.copy_(torch.randn(b_ERO.shape, generator=generator) * spread)
    stacked.fire(stacked.names)
    return stacked
