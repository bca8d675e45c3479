"""The two kinds of meta-router on one footing: gate logits from a prompt's states.

What is made of logits is one function's business: ``multilinear.served_gates``.

Shapes: B prompts, D domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bs_cluster.router.anchor import Anchor
from bs_cluster.router.learned import Gates, Prompts, gate_inputs
from bs_cluster.router.net import MetaRouter
from bs_cluster.router.network_fit import route


class Router(Protocol):
    def logits(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """Gate logits (B, D) float64 of prompts from what ``encode_states`` gave for them."""
        ...


@dataclass(frozen=True)
class AnchoredRouter:
    """The anchor, and what was learned beside it: ``gates``, or None where the anchor itself is served."""

    anchor: Anchor
    gates: Gates | None

    def logits(self, states: Sequence[np.ndarray]) -> np.ndarray:
        return self.gated(gate_inputs(self.anchor, np.stack(states)))

    def gated(self, prompts: Prompts) -> np.ndarray:
        """The same, from what the anchor makes of them."""
        return prompts.anchor_BD.astype(np.float64) if self.gates is None else self.gates.logits(prompts)


@dataclass(frozen=True)
class NetworkRouter:
    """The paper's network, in eval mode."""

    network: MetaRouter

    def logits(self, states: Sequence[np.ndarray]) -> np.ndarray:
        return route(self.network, states).double().cpu().numpy()
