"""The expected loss of independent gates, which is what the meta-router minimises.

For gates ``p`` the expected loss of a row is the multilinear extension of its outcomes,
``Σ_S Π_{d∈S} p_d Π_{d∉S} (1 − p_d) · loss(S)``. Written in logits, the weight of S is ``exp(Σ_{d∈S} z_d)`` over the sum
of these, a softmax over combinations. Where not all 2^D were asked for the same softmax runs over those that were: the
expectation given that the gates choose one of them.

What fires follows from the same softmax: a domain's gate weight is its share of it, in eighths. A row's loss under such
a mean combination is not the mean of losses, and on rows never seen it was the lower of the two (docs/ROUTING.md).

Shapes: B rows, D domains, C combinations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bs_cluster.sweep.combinations import mask_weights

LEVELS = 8  # a gate is one of 0, 1/8 … 1: exact in every floating-point format


def members(masks: Sequence[int], domain_count: int) -> Tensor:
    """Which domains are in which combination, float32 (C, D) of zeros and ones."""
    return torch.tensor([mask_weights(mask, domain_count) for mask in masks])


def expected_loss(logits_BD: Tensor, loss_BC: Tensor, member_CD: Tensor) -> tuple[Tensor, Tensor]:
    """Expected loss (B,) under independent gates ``sigmoid(logits_BD)`` given one of the combinations, and its slope
    (B, D) in the logits: the covariance of a domain's firing with the loss. In closed form, since thousands of small
    fits are made of it.
    """
    weight_BC = (logits_BD @ member_CD.T).softmax(dim=1)
    expected_B = (weight_BC * loss_BC).sum(dim=1)
    return expected_B, (weight_BC * (loss_BC - expected_B[:, None])) @ member_CD


def served_gates(logits_BD: np.ndarray, masks: Sequence[int], part_B: np.ndarray | float = 1.0) -> np.ndarray:
    """The gate weights (B, D) float64 that prompts are answered under: each domain's share of the softmax over
    ``masks``, of that the part ``part_B``, in whole ``LEVELS``. Where all 2^D are there it is the sigmoid of its logit.

    The one place where logits become gates, in judging and serving alike. In steps, so that a domain of no account is
    off and costs nothing, two machines serve the same, and prompts with equal gates can share what hangs on them.
    """
    member_CD = members(masks, logits_BD.shape[1]).double()
    weight_BC = (torch.from_numpy(logits_BD).double() @ member_CD.T).softmax(dim=1)
    return np.round(np.reshape(part_B, (-1, 1)) * (weight_BC @ member_CD).numpy() * LEVELS) / LEVELS
