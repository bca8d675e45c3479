"""Tiny models with several trained-looking stacks on them, for the tests of this folder and of inference.

peft = stacked_model("llama", ["chat_r1", "code_r1"])       # every tensor of every stack is random, B included
tuner(peft).fire(["chat_r1"], train="code_r1")
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from peft import PeftModel, get_peft_model
from reference import PlainSite, PlainStack
from tiny import tiny_gemma3, tiny_llama
from torch import nn

from bs_cluster.adapter_format import PARTS
from bs_cluster.config.schema import PROJECTIONS
from bs_cluster.stacks import StackConfig, StackModel
from bs_cluster.stacks.layer import StackLinear

FACTORIES = {"gemma3": tiny_gemma3, "llama": tiny_llama}
POSITIONS = {"chat": 0, "code": 1, "math": 2, "reasoning": 3}


def config(name: str, **settings) -> StackConfig:
    """The configuration of the stack called ``<domain>_r<round>``; rank 4, three experts, two of them fire."""
    domain, _, number = name.rpartition("_r")
    values = {
        "rank": 4,
        "experts": 3,
        "top_k": 2,
        "alpha": 4.0,
        "target_modules": list(PROJECTIONS),
        "exclude_modules": ["vision_tower", "multi_modal_projector"],
        "task_type": "CAUSAL_LM",
        "domain": domain,
        "round": int(number),
        "position": POSITIONS[domain],
    }
    return StackConfig(**(values | settings))


def add_stacks(model: nn.Module, names: Sequence[str], spread: float = 0.05, **settings) -> PeftModel:
    """Puts stacks on a model; what a stack holds follows from its name alone, not from the order."""
    peft: PeftModel | None = None
    for name in names:
        if peft is None:
            peft = get_peft_model(model, config(name, **settings), adapter_name=name)  # type: ignore[assignment]
        else:
            peft.add_adapter(name, config(name, **settings))
        randomise(tuner(peft), name, spread)
    assert peft is not None
    return peft


def stacked_model(kind: str, names: Sequence[str], dtype: torch.dtype = torch.float32, **settings) -> PeftModel:
    peft = add_stacks(FACTORIES[kind](), names, **settings).to(dtype)
    tuner(peft).fire(names)
    return peft


@torch.no_grad()
def randomise(stack_model: StackModel, name: str, spread: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for site in stack_model.sites:
        for part in PARTS:
            tensor = getattr(site, part)[name]
            width = 0.3 if part in ("stack_A", "stack_router") else spread
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * width)


def tuner(peft: PeftModel) -> StackModel:
    return peft.base_model  # type: ignore[return-value]


def plain_stack(site: StackLinear, name: str, learns: bool = False, dtype: torch.dtype = torch.float64) -> PlainStack:
    """A copy of one stack of one site for the reference, as leaves that ask for a gradient if it ``learns``."""
    tensors = [getattr(site, part)[name].detach().clone().to(dtype).requires_grad_(learns) for part in PARTS]
    return PlainStack(*tensors)


def plain_site(site: StackLinear, stacks: list[PlainStack], cuts_gradient: bool = False) -> PlainSite:
    return PlainSite(site.base_layer, stacks, site.top_k, site.scale, cuts_gradient)  # type: ignore[arg-type]


def leaves(stack: PlainStack) -> dict[str, torch.Tensor]:
    return dict(zip(PARTS, (stack.a_ERI, stack.b_ERO, stack.router_EI, stack.noise_EI), strict=True))


def orthonormal(width: int, rank: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))[0].to(dtype)


def random_ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 300, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def largest_sine(a_OK: torch.Tensor, b_OK: torch.Tensor) -> float:
    """Sine of the largest principal angle between two subspaces of one dimension."""
    a_OK, b_OK = a_OK.double(), b_OK.double()
    assert a_OK.shape == b_OK.shape
    return float(torch.linalg.matrix_norm(a_OK - b_OK @ (b_OK.t() @ a_OK), ord=2))
