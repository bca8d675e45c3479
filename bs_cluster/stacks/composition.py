"""Which stacks fire, how strongly, and what a training step shares between sites.

One ``Composition`` belongs to one model; every site holds a reference. It is the only state besides parameters
that a site's forward reads, and only ``StackModel`` writes it.

Shapes: B rows, T tokens, D domains, S stacks, P sites, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from bs_cluster.stacks.balance import LoadBalance

if TYPE_CHECKING:
    from bs_cluster.stacks.nullspace import Moments


@dataclass(frozen=True)
class Training:
    """What one micro-batch of training brings: noise (P, E, T) or None, a token mask (T,) or None, the step's size."""

    noise_PET: torch.Tensor | None
    token_mask_T: torch.Tensor | None
    tokens_in_step: float
    balance: LoadBalance | None


@dataclass
class Composition:
    resident: tuple[str, ...] = ()  # every frozen stack that is loaded, in fused order
    firing: tuple[str, ...] = ()  # those of them that are on
    train: str | None = None  # the stack that learns, never among ``firing``
    active: tuple[str, ...] = ()  # the part of ``firing`` that the batch in flight needs
    weights_BS: torch.Tensor | None = None  # gate weight per row and active stack, None: all one
    training: Training | None = None
    moments: dict[int, Moments] = field(default_factory=dict)  # filled while a domain's directions are measured

    def reset_weights(self) -> None:
        self.active, self.weights_BS = self.firing, None
