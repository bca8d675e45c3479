"""Bases of random weights: a language model that knows nothing, for stacks to make one of (the paper's section 6.1).

A token is a byte. The head is tied to the embeddings. Weights depend on the settings alone: NumPy draws them, whose
streams are the same on every machine, where torch's normal numbers depend on the CPU's vector unit.
"""

# Shapes: B crops, T tokens.
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from bs_cluster.base.byte_tokenizer import BOS, EOS, PAD, VOCAB, byte_tokenizer
from bs_cluster.base.threads import one_thread
from bs_cluster.base.write import write_base
from bs_cluster.config.schema import BaseSection, RandomSection
from bs_cluster.records import canonical_json, sha256_hex

# After ``random:``.
ARCHITECTURES = {"gemma3": (Gemma3TextConfig, Gemma3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
# How embeddings learn: crops a step, tokens of a crop at most, AdamW's peak rate.
CROPS, CROP_TOKENS, RATE = 16, 128, 1e-2
WINDOW = 512  # of Gemma 3's sliding layers, as in its smallest


def random_digest(base: BaseSection) -> str:
    """SHA-256 (hex) of all that decides a random base's weights: its settings, and the text if embeddings learn one."""
    text = sha256_hex(_text().encode()) if base.random.embeddings == "trained" else ""
    return sha256_hex(canonical_json({"model": base.model, "text": text, **base.random.model_dump(mode="json")}))


def random_config(base: BaseSection) -> PreTrainedConfig:
    """The model's configuration, without a weight."""
    name, sizes = base.model.partition(":")[2], base.random
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads or sizes.heads,
        "head_dim": sizes.hidden // sizes.heads,
        "max_position_embeddings": sizes.context,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }
    if name == "gemma3":
        settings |= {"query_pre_attn_scalar": settings["head_dim"], "sliding_window": min(WINDOW, sizes.context)}
    return ARCHITECTURES[name][0](**settings)


def write_random_base(base: BaseSection, folder: Path) -> None:
    """Fill ``folder`` with the model (bf16 safetensors) and its tokenizer."""
    sizes = base.random
    with torch.random.fork_rng(devices=[]):  # whoever needs a base has a stream of random numbers of their own
        model = ARCHITECTURES[base.model.partition(":")[2]][1](random_config(base))
    _draw(model, sizes)
    if sizes.embeddings == "trained":
        _train_embeddings(model, sizes)
    write_base(model.to(torch.bfloat16), byte_tokenizer(sizes.context), folder)


@torch.no_grad()
def _draw(model: PreTrainedModel, sizes: RandomSection) -> None:
    """Every matrix anew; norms stay as they are, which is one."""
    draw = np.random.default_rng(sizes.seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            drawn = draw.standard_normal(tuple(parameter.shape), dtype=np.float32)
            parameter.copy_(torch.from_numpy(drawn) * sizes.std)


def _train_embeddings(model: PreTrainedModel, sizes: RandomSection) -> None:
    """Embeddings and head, one matrix, learn to predict a text's bytes through the random layers, which stay.

    In fp32 on one thread: the same bits again on the same kind of CPU and version of torch.
    """
    tokenizer = byte_tokenizer(sizes.context)
    text = torch.tensor(tokenizer(_text(), add_special_tokens=False, verbose=False).input_ids)
    tokens = min(sizes.context, CROP_TOKENS)
    draw = np.random.default_rng([sizes.seed, 1])
    learned: Any = model.get_input_embeddings().weight
    model.float().requires_grad_(False)
    learned.requires_grad_(True)
    adam = torch.optim.AdamW([learned], lr=RATE, weight_decay=0.0, foreach=False)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, sizes.embedding_steps)
    with one_thread():
        for _ in range(sizes.embedding_steps):
            starts = draw.integers(0, len(text) - tokens, CROPS)
            crops_BT = torch.stack([text[start : start + tokens] for start in starts.tolist()])
            _next_byte_loss(model, crops_BT).backward()
            adam.step()
            adam.zero_grad()
            schedule.step()


def _next_byte_loss(model: PreTrainedModel, crops_BT: Tensor) -> Tensor:
    bos_B1 = torch.full((len(crops_BT), 1), BOS)
    logits_BTV = model(input_ids=torch.cat([bos_B1, crops_BT[:, :-1]], dim=1), use_cache=False).logits
    return functional.cross_entropy(logits_BTV.flatten(0, 1), crops_BT.flatten())


def _text() -> str:
    """The Python language reference, as the Python that runs this holds it."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte of text

    return "\n\n".join(topics[name] for name in sorted(topics))
