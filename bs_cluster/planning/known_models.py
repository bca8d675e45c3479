"""The shapes of bases that need no hub: what a model's config.json says and transformers' defaults do not.

Sources, beside the parameter counts that each of them gives and a test holds these numbers to:
Gemma 3 12B IT: arXiv 2503.19786, tables 1 and 2, and transformers' Gemma3Config (vision side, vocabulary); its text
model has 11,765,788,416 parameters at a vocabulary of 262,144 (keras-hub, gemma3_presets.py).
Llama 3.1 70B: arXiv 2407.21783, table 3; 70,553,706,496 parameters (the Hub's safetensors index).
TinyLlama 1.1B: arXiv 2401.02385, table 1; 1,100,048,384 parameters.
The embedded bases: the metadata of their GGUF files.
"""

from __future__ import annotations

from typing import Any

_GEMMA3_12B: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "vocab_size": 262_208,
        "hidden_size": 3840,
        "intermediate_size": 15_360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "mm_tokens_per_image": 256,
}
_LLAMA3_70B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}

# By ``base.model``.
KNOWN: dict[str, dict[str, Any]] = {
    "google/gemma-3-12b-it": _GEMMA3_12B,
    "google/gemma-3-12b-pt": _GEMMA3_12B,
    "meta-llama/Llama-3.1-70B": _LLAMA3_70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA3_70B,
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA3_70B,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "embedded:gemma3-270m": {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
    },
    "embedded:smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
}
