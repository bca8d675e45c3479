"""All rounds of a domain as one adapter: what was trained round by round and fires together.

Each tensor of the rounds is stacked in front, ``stack_A`` (E, R, I) of S rounds becomes (S, E, R, I), and the
configuration says how many there are. A domain of one round is that round's own adapter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from bs_cluster.stacks.config import StackConfig


def joined_config(rounds: Sequence[StackConfig]) -> StackConfig:
    """The configuration of the rounds, in order from the first, as one adapter. Raises ValueError for other than that,
    or for rounds that are not of one kind."""
    last = rounds[-1]
    for number, config in enumerate(rounds, start=1):
        alike = dataclasses.replace(last, round=number, inference_mode=config.inference_mode)
        if config != alike or config.rounds != 1:
            raise ValueError(
                f"{config.domain} round {config.round} stands where round {number} of {last.domain}, of the same kind "
                "as the last, is wanted"
            )
    return dataclasses.replace(last, rounds=len(rounds), inference_mode=True)


def joined_tensors(rounds: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of the rounds by their keys in the file, which are the same in all of them."""
    if len(rounds) == 1:
        return dict(rounds[0])
    return {key: torch.stack([tensors[key] for tensors in rounds]) for key in rounds[0]}
