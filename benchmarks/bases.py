"""The frozen bases that benchmarks run on: a real one, or layers of a given shape with random NF4 weights.

``random:gemma3-12b:4`` is four layers of Gemma 3 12B's shape under a small vocabulary: timing a layer needs no
download. Needs torch, transformers and bitsandbytes alone, so it runs on a bare GPU machine.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

SHAPES: dict[str, dict[str, Any]] = {
    "gemma3-12b": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 32768,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 512,
    },
}


def load_model(name: str, device: str) -> nn.Module:
    """A frozen NF4 causal language model in bf16, eval mode: ``random:<shape>:<layers>`` or a base of a campaign."""
    kind, _, rest = name.partition(":")
    if kind == "random":
        shape, _, layers = rest.partition(":")
        return random_model(shape, int(layers or 2), device)
    from bs_cluster.base.load import load_base  # noqa: PLC0415  wants the whole package, which a bare GPU machine lacks
    from bs_cluster.config.schema import BaseSection  # noqa: PLC0415

    return load_base(BaseSection(model=name, compute_dtype="bfloat16"), device=device).model


def random_model(shape: str, layers: int, device: str) -> nn.Module:
    if shape not in SHAPES:
        raise ValueError(f"no shape called {shape!r}; there are {', '.join(SHAPES)}")
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)]
    config = Gemma3TextConfig(**SHAPES[shape], num_hidden_layers=layers, layer_types=kinds, sliding_window=1024)
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).to(torch.bfloat16)
    for layer in model.model.layers:
        for path, linear in list(layer.named_modules()):
            if isinstance(linear, nn.Linear):
                parent, _, child = path.rpartition(".")
                setattr(layer.get_submodule(parent), child, nf4(linear, device))
    return model.to(device).requires_grad_(False).eval()


def nf4(linear: nn.Linear, device: str) -> Linear4bit:
    """The layer quantised as the base loader does it."""
    quantised = Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    quantised.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    quantised.support_avx512bf16_for_cpu = False  # its repacking loses the input's gradient
    return quantised.to(device)
