"""What one must know of bitsandbytes' 4-bit layers: a bug to switch off."""

from __future__ import annotations

from bitsandbytes.nn.modules import Linear4bit
from torch import nn


def keep_weights_differentiable(model: nn.Module) -> None:
    """Stop ``Linear4bit`` from repacking its weight in place on CPUs with AVX-512-BF16.

    One forward in eval mode repacks it, and from then on every training forward drops the gradient with respect to
    its input: what lies below learns nothing (seen: validation loss 2.3 to 10.7), with a warning at most.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
