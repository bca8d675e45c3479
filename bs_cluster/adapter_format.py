"""The format of a stack on disk, written down once: a PEFT adapter of two files.

    adapter_config.json          the PEFT configuration
    adapter_model.safetensors    one tensor per site and part, keyed base_model.model.<site>.<part>

    stack_A (E, R, I)    stack_B (E, R, O)    stack_router (E, I)    stack_noise (E, I)

A site is named by its module path in the base, ``model.layers.0.self_attn.q_proj``. Shapes: E experts, R rank,
I in_features, O out_features.
"""

from __future__ import annotations

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PARTS = ("stack_A", "stack_B", "stack_router", "stack_noise")
_ROOT = "base_model.model."  # what PEFT puts before the base's own names


def tensor_key(site: str, part: str) -> str:
    """The key of one part of one site in the weights file."""
    return f"{_ROOT}{site}.{part}"


def parse_key(key: str) -> tuple[str, str]:
    """Site and part that a key names. Raises ValueError for a key of no stack."""
    site, _, part = key.removeprefix(_ROOT).rpartition(".")
    if not key.startswith(_ROOT) or not site or part not in PARTS:
        raise ValueError(f"{key!r} is no stack tensor; keys are '{_ROOT}<site>.<part>' with a part of {list(PARTS)}")
    return site, part
