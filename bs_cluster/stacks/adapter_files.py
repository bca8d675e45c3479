"""A stack as files: ``adapter_config.json`` and ``adapter_model.safetensors``, the format PEFT loads.

One key per tensor per site, ``base_model.model.<site>.stack_A`` and so on, in fp32: ``VᵀB = 0`` to 1e-5 does not
survive bf16, whose rounding alone is 4e-3. What is written is the folded form, so the file needs no basis.

Shapes: I in_features, O out_features, E experts, R rank, K basis rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save, save_file

from bs_cluster.stacks.config import StackConfig
from bs_cluster.stacks.model import StackModel

WEIGHTS_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"


@torch.no_grad()
def folded_tensors(tuner: StackModel, name: str) -> dict[str, torch.Tensor]:
    """The learning stack ``name`` with its null-space constraint folded into A and B; fp32 on CPU, file keys."""
    tensors: dict[str, torch.Tensor] = {}
    for path, site in zip(tuner.site_names(), tuner.sites, strict=True):
        a_MI, b_MO = site.effective(name)
        parts = {
            "stack_A": a_MI.view_as(site.stack_A[name]),
            "stack_B": b_MO.view_as(site.stack_B[name]),
            "stack_router": site.stack_router[name],
            "stack_noise": site.stack_noise[name],
        }
        for part, tensor in parts.items():
            tensors[f"base_model.model.{path}.{part}"] = tensor.detach().float().cpu().contiguous()
    return tensors


def write_adapter(directory: Path, config: StackConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes both files; the same stack always gives the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(tensors.items())), directory / WEIGHTS_NAME, metadata={"format": "pt"})
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    settings |= {"peft_type": str(config.peft_type), "inference_mode": True}
    (directory / CONFIG_NAME).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def basis_bytes(bases: Mapping[str, torch.Tensor]) -> bytes:
    """A set of bases, site path -> (O, K) or (I, K), as safetensors bytes; equal bases give equal bytes."""
    return save({path: basis.contiguous() for path, basis in sorted(bases.items())}, metadata={"format": "pt"})


def load_basis(data: bytes) -> dict[str, torch.Tensor]:
    return load(data)
