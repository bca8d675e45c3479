"""How many ranks work together, which of them this is, and their sums. One rank without a process group is a world."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def world_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, in place; every rank gets the same bits."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
