"""What one must know of bitsandbytes' 4-bit layers: a bug to switch off, and the weight they really multiply by."""

from __future__ import annotations

from typing import cast

import bitsandbytes.functional as bnb
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn

from bs_cluster.errors import BaseModelError


def keep_weights_differentiable(model: nn.Module) -> None:
    """Stop ``Linear4bit`` from repacking its weight in place on CPUs with AVX-512-BF16.

    One forward in eval mode repacks it, and from then on every training forward drops the gradient with respect to
    its input: what lies below learns nothing (seen: validation loss 2.3 to 10.7), with a warning at most.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def dequantized_weight(module: nn.Module) -> Tensor:
    """The weight, (out, in) in compute dtype, that ``module``'s forward multiplies by; bit for bit.

    For a Linear4bit a fresh tensor, for a plain Linear its own weight, detached.
    """
    if isinstance(module, Linear4bit):
        state = cast(Params4bit, module.weight).quant_state
        if state is None:
            raise BaseModelError("a Linear4bit has not been quantised yet; load the base with load_base first")
        if getattr(state, "packing_format_for_cpu", False):
            raise BaseModelError("a Linear4bit has been repacked for CPU inference; load the base with load_base")
        weight = bnb.dequantize_4bit(module.weight.data, state)
        return weight.to(module.compute_dtype if module.compute_dtype is not None else weight.dtype)
    if isinstance(module, nn.Linear):
        return module.weight.detach()
    raise BaseModelError(f"{type(module).__name__} is no linear layer; dequantized_weight takes Linear and Linear4bit")
