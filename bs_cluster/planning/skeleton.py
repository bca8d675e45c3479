"""A base as shapes alone, on PyTorch's meta device: its modules, its quantised weights, no byte of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from bs_cluster.base.load import COMPUTE_DTYPES, LoadedBase, nf4_config
from bs_cluster.base.prepare import prepare_base
from bs_cluster.base.random_weights import random_config
from bs_cluster.config.schema import BaseSection
from bs_cluster.errors import BaseModelError
from bs_cluster.planning.known_models import KNOWN
from bs_cluster.planning.live_bytes import FUSED_ATTENTION
from bs_cluster.records import BaseRef

# NF4: numbers that share a scale, and scales that share a second one.
BLOCK, SCALES_BLOCK = 64, 256


def model_config(base: BaseSection) -> PretrainedConfig:
    """The base's configuration: from our own table, what a random one is to be, its folder, or the Hub's config.json;
    never a weight.

    Raises BaseModelError where none of them has it.
    """
    if (known := KNOWN.get(base.model)) is not None:
        return AutoConfig.for_model(**known)
    if base.model.startswith("random:"):
        return random_config(base)
    name = prepare_base(base)
    if Path(name).is_dir():
        return AutoConfig.from_pretrained(name)
    try:
        return AutoConfig.from_pretrained(
            str(Path(hf_hub_download(name, "config.json", revision=base.revision)).parent)
        )
    except OSError as error:
        raise BaseModelError(
            f"base.model = {base.model}: the Hub did not give its config.json; check the name and the network, log in "
            f"with `hf auth login` for a gated model, or name a local folder. Known without it: {', '.join(KNOWN)}"
        ) from error


def skeleton(base: BaseSection, layers: int | None = None) -> LoadedBase:
    """What ``load_base`` gives, without data: the same modules with the same wrapping and number formats; or of its
    text model the last ``layers`` alone, in which all kinds of layers are."""
    dtype = COMPUTE_DTYPES[base.compute_dtype]
    config = model_config(base)
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if (kinds := getattr(text, "layer_types", None)) is not None:
            text.layer_types = kinds[-layers:]
    with torch.device("meta"):
        # One attention stands for all: that of the config may not be installed here.
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=FUSED_ATTENTION)
    if base.quantization == "nf4":
        kept = get_keys_to_not_convert(model)
        replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=nf4_config(base))
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.weight = _packed(module, dtype, base.double_quant)
    model.requires_grad_(False)
    model.eval()
    return LoadedBase(model, None, BaseRef(base.model, "", base.quantization))  # type: ignore[arg-type]


def weights_of(model: nn.Module) -> list[Any]:
    """Everything that holds bytes of a base: parameters, buffers, and the scales of quantised weights."""
    held: list[Any] = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        if isinstance(parameter, Params4bit):
            state: Any = parameter.quant_state
            held += [state.absmax, state.code]
            held += [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
    return held


def packed_shape(weight: Params4bit) -> torch.Size:
    """Of the weight that is packed in it."""
    state: Any = weight.quant_state
    return state.shape


def _packed(linear: Linear4bit, dtype: torch.dtype, nested: bool) -> Params4bit:
    """The weight as bitsandbytes packs it: two numbers a byte, a scale a block, and scales of scales."""
    numbers = linear.in_features * linear.out_features
    blocks = math.ceil(numbers / BLOCK)

    def empty(*size: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(size, dtype=of, device="meta")

    scales = QuantState(
        absmax=empty(math.ceil(blocks / SCALES_BLOCK)), code=empty(256), blocksize=SCALES_BLOCK, dtype=torch.float32
    )
    state = QuantState(
        absmax=empty(blocks, of=torch.uint8) if nested else empty(blocks),
        shape=torch.Size((linear.out_features, linear.in_features)),
        code=empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=empty() if nested else None,
        state2=scales if nested else None,
    )
    made: Any = Params4bit  # whose annotations are those of torch's own parameter
    return made(
        empty(math.ceil(numbers / 2), 1, of=torch.uint8),
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK,
        compress_statistics=nested,
        quant_type="nf4",
        module=linear,
        bnb_quantized=True,
    )
