"""The two kinds of meta-router on one footing: gate logits from a prompt's states.

What is made of logits is one function's business: ``multilinear.choose``.

Shapes: B prompts, D domains, P inputs of the learned gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bs_cluster.router.anchor import Anchor
from bs_cluster.router.learned import gate_inputs, gate_logits
from bs_cluster.router.net import MetaRouter
from bs_cluster.router.network_fit import route


class Router(Protocol):
    def logits(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """Gate logits (B, D) float64 of prompts from what ``encode_states`` gave for them."""
        ...


@dataclass(frozen=True)
class AnchoredRouter:
    """The anchor, and what was learned beside it: ``weight_PD``, or None where the anchor itself is served."""

    anchor: Anchor
    weight_PD: np.ndarray | None

    def logits(self, states: Sequence[np.ndarray]) -> np.ndarray:
        prompts = gate_inputs(self.anchor, np.stack(states))
        return prompts.anchor_BD.astype(np.float64) if self.weight_PD is None else gate_logits(prompts, self.weight_PD)


@dataclass(frozen=True)
class NetworkRouter:
    """The paper's network, in eval mode."""

    network: MetaRouter

    def logits(self, states: Sequence[np.ndarray]) -> np.ndarray:
        return route(self.network, states).double().cpu().numpy()
