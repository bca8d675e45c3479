"""How many ranks work together, which of them this is, and what they do as one. One rank without a process group is a
world."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

from bs_cluster.errors import TrainingError

Value = TypeVar("Value")


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def world_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, in place; every rank gets the same bits."""
    if world_size() > 1:
        within_reach = tensor.to(_device(tensor))
        dist.all_reduce(within_reach)
        if within_reach is not tensor:
            tensor.copy_(within_reach)
    return tensor


def gather_parts(part: torch.Tensor) -> torch.Tensor:
    """Every rank's part, all of one size, end to end in order of rank."""
    if world_size() == 1:
        return part
    own = part.detach().to(_device(part)).contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts)


def from_all_ranks(value: Value) -> list[Value]:
    """What each rank holds, by rank, on every rank."""
    held = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(held, value)
    return held


def check_agreement(what: str, value: str) -> None:
    """Raises TrainingError on every rank unless all of them hold the same ``value``."""
    held = from_all_ranks(value)
    if len(set(held)) > 1:
        raise TrainingError(
            f"the {world_size()} workers do not agree on {what} (by rank: {', '.join(held)}); "
            "give every node the same code, config and files"
        )


def _device(tensor: torch.Tensor) -> torch.device:
    """Where the backend reaches a tensor: NCCL knows GPUs only."""
    if tensor.device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return tensor.device
