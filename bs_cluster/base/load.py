"""Load the frozen base as every part of the system sees it: NF4, no gradients of its own, safe to differentiate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from bs_cluster.base.digest import base_digest
from bs_cluster.base.nf4 import keep_weights_differentiable
from bs_cluster.base.prepare import prepare_base
from bs_cluster.base.tokenizer import local_folder, tokenizer_in
from bs_cluster.config.schema import BaseSection
from bs_cluster.records import BaseRef

COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class LoadedBase:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ref: BaseRef


def load_base(base: BaseSection, *, device: str | torch.device) -> LoadedBase:
    """The base on ``device``, frozen and in eval mode, with its tokenizer (pads on the right) and its reference.

    A multimodal checkpoint (Gemma 3 4B and up) loads whole, vision side included. Raises BaseModelError when the
    model cannot be found, has no safetensors or has no padding token.
    """
    path = local_folder(prepare_base(base), base)
    settings: dict[str, Any] = {
        "dtype": COMPUTE_DTYPES[base.compute_dtype],
        "attn_implementation": base.attention,
        "device_map": {"": str(device)},
    }
    if base.quantization == "nf4":
        settings["quantization_config"] = nf4_config(base)
    ref = BaseRef(model=base.model, digest=base_digest(path, base), quantization=base.quantization)
    # AutoModelForCausalLM also knows the multimodal Gemma 3: it gives Gemma3ForConditionalGeneration.
    model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **settings)
    keep_weights_differentiable(model)
    model.requires_grad_(False)
    model.eval()
    return LoadedBase(model=model, tokenizer=tokenizer_in(path, base), ref=ref)


def nf4_config(base: BaseSection) -> BitsAndBytesConfig:
    """How bitsandbytes is to pack the base's weights."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=base.double_quant,
        bnb_4bit_compute_dtype=COMPUTE_DTYPES[base.compute_dtype],
    )
