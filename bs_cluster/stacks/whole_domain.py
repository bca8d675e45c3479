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
    """The configuration of a domain's rounds, one after another, as one adapter; a domain that trained anew counts on
    from the rounds that it had. Raises ValueError for other stacks than those, and for rounds that are not alike."""
    last = rounds[-1]
    for number, config in enumerate(rounds, start=rounds[0].round):
        if (config.round, config.rounds) != (number, 1) or _kind(config) != _kind(last):
            raise ValueError(
                f"{config.domain} round {config.round} stands where round {number} of {last.domain}, of the last one's "
                "kind, is wanted"
            )
    return dataclasses.replace(last, rounds=len(rounds), inference_mode=True)


def _kind(config: StackConfig) -> tuple[object, ...]:
    """What all rounds of a domain have in common."""
    shape = (config.rank, config.experts, config.top_k, config.scale)
    return config.domain, config.position, *shape, config.target_modules, config.exclude_modules


def joined_tensors(rounds: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of the rounds by their keys in the file, which are the same in all of them."""
    if len(rounds) == 1:
        return dict(rounds[0])
    return {key: torch.stack([tensors[key] for tensors in rounds]) for key in rounds[0]}
