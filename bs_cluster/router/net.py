"""The meta-router network (DESIGN, section 3; arXiv 2604.01152).

    states (B, T, H) -> standardise -> Linear H→h, LayerNorm -> tokens (B, T, h)
    1 global + D domain queries attend over the tokens       -> pooled (B, 1+D, h)
    fusion MLP on [all pooled vectors] -> one logit per domain, over a learned temperature

Shapes: B prompts, T tokens, H hidden size of the base, D domains, Q = 1 + D queries, h router width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# A few tokens, the first above all, have features hundreds of times larger than the rest. Past this many standard
# deviations only that they are outliers is kept.
CLIP = 5.0
TEMPERATURE_RANGE = (0.25, 4.0)


class MetaRouter(nn.Module):
    """Logits per domain from the base model's own hidden states. Standardisation is part of the module: its
    statistics are buffers, set once from the training rows, saved and loaded with the weights.
    """

    centre_H: Tensor
    scale_H: Tensor

    def __init__(self, input_size: int, domain_count: int, hidden: int = 512, dropout: float = 0.1):
        super().__init__()
        self.input_size, self.domain_count, self.hidden = input_size, domain_count, hidden
        self.register_buffer("centre_H", torch.zeros(input_size))
        self.register_buffer("scale_H", torch.ones(input_size))
        self.project = nn.Linear(input_size, hidden)
        self.norm = nn.LayerNorm(hidden)
        # Near zero: attention starts as a plain mean over tokens and sharpens where that pays.
        self.query_Qh = nn.Parameter(0.02 * torch.randn(1 + domain_count, hidden))
        self.fuse = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear((1 + domain_count) * hidden, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, domain_count),
        )
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def standardise_with(self, centre_H: Tensor, scale_H: Tensor) -> None:
        self.centre_H.copy_(centre_H)
        self.scale_H.copy_(scale_H)

    def forward(self, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits (B, D). ``mask_BT`` is True at tokens, False at padding; every prompt has a token at least."""
        # Padding is zeroed first, so that whatever stands there, even NaN, cannot reach a sum.
        states_BTH = torch.where(mask_BT[..., None], states_BTH.float(), self.centre_H)
        features_BTH = ((states_BTH - self.centre_H) / self.scale_H).clamp(-CLIP, CLIP)
        tokens_BTh = self.norm(self.project(features_BTH))
        scores_BQT = self.query_Qh @ tokens_BTh.transpose(1, 2) / math.sqrt(self.hidden)
        attention_BQT = scores_BQT.masked_fill(~mask_BT[:, None], -torch.inf).softmax(dim=-1)
        pooled_BQh = attention_BQT @ tokens_BTh
        return self.fuse(pooled_BQh.flatten(1)) / self.temperature

    @property
    def temperature(self) -> Tensor:
        low, high = (math.log(bound) for bound in TEMPERATURE_RANGE)
        return self.log_temperature.clamp(low, high).exp()
