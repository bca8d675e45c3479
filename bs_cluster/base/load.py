"""Load the frozen base as every part of the system sees it: NF4, no gradients of its own, safe to differentiate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bs_cluster.base.digest import base_digest
from bs_cluster.base.nf4 import keep_weights_differentiable
from bs_cluster.base.prepare import built_folder, prepare_base
from bs_cluster.config.schema import BaseSection
from bs_cluster.errors import BaseModelError
from bs_cluster.records import BaseRef

COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_WANTED_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_UNWANTED_FILES = ["original/*", "consolidated*", "*/*.safetensors"]


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
    path = _local_folder(prepare_base(base), base)
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
    return LoadedBase(model=model, tokenizer=_tokenizer(path, base), ref=ref)


def nf4_config(base: BaseSection) -> BitsAndBytesConfig:
    """How bitsandbytes is to pack the base's weights."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=base.double_quant,
        bnb_4bit_compute_dtype=COMPUTE_DTYPES[base.compute_dtype],
    )


def load_tokenizer(base: BaseSection) -> PreTrainedTokenizerBase:
    """The base's tokenizer alone; pads on the right. Raises BaseModelError like ``load_base``."""
    return _tokenizer(_local_folder(prepare_base(base), base), base)


def tokenizer_if_here(base: BaseSection) -> PreTrainedTokenizerBase | None:
    """``load_tokenizer`` where nothing has to be built or downloaded for it, else None."""
    folder = built_folder(base)
    if folder is not None:
        return _tokenizer(str(folder), base) if folder.is_dir() else None
    name = prepare_base(base)
    if not Path(name).is_dir():
        try:
            name = snapshot_download(name, revision=base.revision, allow_patterns=_WANTED_FILES, local_files_only=True)
        except OSError:
            return None
    return _tokenizer(name, base)


def _local_folder(name: str, base: BaseSection) -> str:
    """A Hub name becomes the folder of its snapshot, downloaded where it is not in the cache yet."""
    if Path(name).is_dir():
        return name
    try:
        return snapshot_download(
            name, revision=base.revision, allow_patterns=_WANTED_FILES, ignore_patterns=_UNWANTED_FILES
        )
    except OSError as error:  # what every error of the Hub's client is: network, offline, gated, not found
        reason = " ".join(str(error).split())[:200]
        raise BaseModelError(
            f"base.model = {base.model}: the Hub did not give it ({reason}); check the name and the network, "
            "log in with `hf auth login` for a gated model, or name a local folder"
        ) from error


def _tokenizer(path: str, base: BaseSection) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    if tokenizer.eos_token_id is None:
        raise BaseModelError(f"base.model = {base.model}: its tokenizer has no eos_token; completions could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
