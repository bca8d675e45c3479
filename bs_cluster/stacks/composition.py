"""Which stacks fire, how strongly, and what a training step shares between sites.

One ``Composition`` belongs to one model; every site holds a reference. It is the only state besides parameters
that a site's forward reads, and only ``StackModel`` writes it.

Shapes: B rows, T tokens, D domains, S stacks, P sites, E experts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from bs_cluster.stacks.balance import LoadBalance

if TYPE_CHECKING:
    from bs_cluster.stacks.moments import Observer


@dataclass(frozen=True)
class Training:
    """What one micro-batch of training brings: noise (P, E, T) or None, a token mask (T,) or None, the step's size."""

    noise_PET: torch.Tensor | None
    token_mask_T: torch.Tensor | None
    tokens_in_step: float
    balance: LoadBalance | None


@dataclass
class Composition:
    resident: tuple[str, ...] = ()  # every frozen stack that is loaded and not parked, in fused order
    parked: frozenset[str] = frozenset()  # those that wait in the host's memory
    rounds: dict[str, int] = field(default_factory=dict)  # how many stacks a name is, where it is several
    firing: tuple[str, ...] = ()  # those of them that are on
    train: str | None = None  # the stack that learns, never among ``firing``
    active: tuple[str, ...] = ()  # the part of ``firing`` that the batch in flight needs
    weights_BS: torch.Tensor | None = None  # gate weight per row and active stack, None: all one
    weights_ST: torch.Tensor | None = None  # the same per token of the batch in flight, made by its first site
    training: Training | None = None
    observer: Observer | None = None  # told of what passes every site while something is measured
    undecided: tuple[str, ...] = ()  # loaded beside others since it was last said what fires

    def warn_of_undecided(self) -> None:
        """Says once that what was loaded last is off: PEFT loads an adapter beside others and turns nothing on."""
        names, self.undecided = self.undecided, ()
        on = list(self.firing if self.train is None else (*self.firing, self.train))
        warnings.warn(
            f"{', '.join(names)} was loaded and does not fire, only {on} do: the PeftModel's set_adapter({names[0]!r}) "
            f"fires it alone, base_model.fire({[*self.firing, *names]}) beside the others",
            stacklevel=2,
        )

    def weigh(self, active: tuple[str, ...], weights_BS: torch.Tensor | None) -> None:
        self.active, self.weights_BS, self.weights_ST = active, weights_BS, None

    def token_weights(self, tokens: int) -> torch.Tensor | None:
        """Gate weight of every stack that fires and every token, (S, T); the learning stack's is one. None: all one."""
        if self.weights_BS is None:
            return None
        if self.weights_ST is None or self.weights_ST.shape[1] != tokens:
            weights_SB = F.pad(self.weights_BS.t(), (0, 0, 0, int(self.train is not None)), value=1.0)
            self.weights_ST = weights_SB.repeat_interleave(tokens // weights_SB.shape[1], dim=1)
        return self.weights_ST
