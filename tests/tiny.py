"""Tiny random bases for tests: real transformers models with all seven projections and grouped key/value heads.

Every dimension that bitsandbytes quantises is a multiple of 64, so that NF4 works on them too.

    model, tokenizer = tiny_gemma3(), tiny_tokenizer()
    folder = save_tiny_base(tmp_path / "base", "gemma3")        # base.model: <folder>
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from bs_cluster.base.byte_tokenizer import BOS, EOS, PAD, VOCAB, byte_tokenizer

Kind = Literal["gemma3", "llama", "gemma3_multimodal"]


def _decoder_settings(layers: int, hidden: int, vocab: int) -> dict:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": max(1, hidden // 64),
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }


def _gemma3_text_config(layers: int, hidden: int, vocab: int) -> Gemma3TextConfig:
    """One sliding layer (window 64) in two, so that both attention masks are used."""
    kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    return Gemma3TextConfig(
        **_decoder_settings(layers, hidden, vocab), sliding_window=64, layer_types=kinds, query_pre_attn_scalar=64
    )


def tiny_gemma3(seed: int = 0, layers: int = 2, hidden: int = 64, vocab: int = VOCAB) -> Gemma3ForCausalLM:
    """A random Gemma 3 text model in float32, eval mode."""
    torch.manual_seed(seed)
    return Gemma3ForCausalLM(_gemma3_text_config(layers, hidden, vocab)).eval()


def tiny_llama(seed: int = 0, layers: int = 2, hidden: int = 64, vocab: int = VOCAB) -> LlamaForCausalLM:
    """A random Llama in float32, eval mode; its head is not tied to the embedding."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_decoder_settings(layers, hidden, vocab), tie_word_embeddings=False)).eval()


def tiny_gemma3_multimodal(
    seed: int = 0, layers: int = 2, hidden: int = 64, vocab: int = VOCAB
) -> Gemma3ForConditionalGeneration:
    """A random multimodal Gemma 3 (the shape of the 4B to 27B models): vision tower, projector, language model."""
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=_gemma3_text_config(layers, hidden, vocab),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_id=vocab - 1,
        boi_token_id=vocab - 2,
        eoi_token_id=vocab - 3,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte."""
    return byte_tokenizer(max_length=1024)


_FACTORIES = {"gemma3": tiny_gemma3, "llama": tiny_llama, "gemma3_multimodal": tiny_gemma3_multimodal}


def save_tiny_base(folder: str | Path, kind: Kind = "gemma3", seed: int = 0, **sizes: int) -> str:
    """Write a tiny model and its tokenizer as a Hugging Face folder and return its path (bf16 weights)."""
    model: PreTrainedModel = _FACTORIES[kind](seed=seed, **sizes)
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
