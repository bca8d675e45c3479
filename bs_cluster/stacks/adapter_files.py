"""Writes a stack as files, in the format that PEFT loads (``bs_cluster.adapter_format``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from bs_cluster.adapter_format import CONFIG_NAME, WEIGHTS_NAME
from bs_cluster.stacks.config import METHOD, StackConfig


def write_adapter(
    directory: Path, config: StackConfig, tensors: Mapping[str, torch.Tensor], method: str = METHOD
) -> None:
    """Writes both files; the same stack always gives the same bytes. ``tensors`` are those of ``StackModel.folded``,
    so the files need no basis. ``method`` is the name of the method in the configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(directory, tensors)
    (directory / CONFIG_NAME).write_text(config_text(config, method))


def config_text(config: StackConfig, method: str = METHOD) -> str:
    """What ``adapter_config.json`` holds."""
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    settings |= {"peft_type": str(method), "inference_mode": True}
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def write_weights(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """The weights file of an adapter, of whatever method."""
    save_file(dict(sorted(tensors.items())), directory / WEIGHTS_NAME, metadata={"format": "pt"})
