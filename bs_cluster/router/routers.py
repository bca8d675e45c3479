"""The two kinds of meta-router on one footing: gate weights from a prompt's states.

What is made of logits is one function's business: ``multilinear.served_gates``.

Shapes: B prompts, D domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bs_cluster.router.anchor import Anchor
from bs_cluster.router.familiar import Kinds, familiarity
from bs_cluster.router.learned import Gates, Prompts, gate_inputs
from bs_cluster.router.multilinear import served_gates
from bs_cluster.router.net import MetaRouter
from bs_cluster.router.network_fit import route

# What strangers are served of their gates, and what at least who is not quite at home. Losses bend: where whole gates
# harm, a quarter of them gains or costs little, and where whole gates gain, a half has nearly all (docs/ROUTING.md).
STRANGERS_PART, PASSERS_PART = 0.25, 0.5


class Router(Protocol):
    def gates(self, states: Sequence[np.ndarray], masks: Sequence[int]) -> np.ndarray:
        """The gate weights (B, D) float64 that prompts are answered under, from what ``encode_states`` gave for them;
        ``masks`` are the combinations to choose from."""
        ...


@dataclass(frozen=True)
class AnchoredRouter:
    """The anchor, the mixed kinds that prompts may be of, and what was learned: ``learned``, or None where the anchor
    itself is served."""

    anchor: Anchor
    kinds: Kinds
    learned: Gates | None

    def gates(self, states: Sequence[np.ndarray], masks: Sequence[int]) -> np.ndarray:
        return self.gated(gate_inputs(self.anchor, np.stack(states)), masks)

    def gated(self, prompts: Prompts, masks: Sequence[int]) -> np.ndarray:
        """The same, from what the anchor makes of them."""
        familiar_B = familiarity(self.anchor, self.kinds, prompts.directions_BK, prompts.similarity_BD)
        part_B = np.where(familiar_B > 0, PASSERS_PART + (1 - PASSERS_PART) * familiar_B, STRANGERS_PART)
        return served_gates(self.logits(prompts), masks, part_B)

    def logits(self, prompts: Prompts) -> np.ndarray:
        """(B, D), whoever asks."""
        return prompts.anchor_BD if self.learned is None else self.learned.logits(prompts)


@dataclass(frozen=True)
class NetworkRouter:
    """The paper's network, in eval mode."""

    network: MetaRouter

    def gates(self, states: Sequence[np.ndarray], masks: Sequence[int]) -> np.ndarray:
        return served_gates(route(self.network, states).double().cpu().numpy(), masks)
