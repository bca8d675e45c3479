"""The expected loss of independent gates, which is what the meta-router minimises.

For gates ``p`` the expected loss of a row is the multilinear extension of its outcomes,
``Σ_S Π_{d∈S} p_d Π_{d∉S} (1 − p_d) · loss(S)``. Written in logits, the weight of S is ``exp(Σ_{d∈S} z_d)`` over the sum
of these, a softmax over combinations. Where not all 2^D were asked for the same softmax runs over those that were: the
expectation given that the gates choose one of them.

Shapes: B rows, D domains, C combinations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bs_cluster.sweep.combinations import mask_weights


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


def choose(logits_BD: np.ndarray, masks: Sequence[int]) -> np.ndarray:
    """The combination served to each prompt, (B,) int64: the most probable of ``masks`` under independent gates.

    The one place where gates become a decision, in training, judging and serving alike. Of equals the first of
    ``masks`` wins. Where all 2^D are there it is every domain whose logit is above zero.
    """
    score_BC = logits_BD.astype(np.float64) @ members(masks, logits_BD.shape[1]).double().numpy().T
    return np.array(masks, dtype=np.int64)[score_BC.argmax(axis=1)]
