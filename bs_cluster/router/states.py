"""Router states of many prompts, encoded once and kept as one tensor.

Shapes: N tokens of all prompts together, B prompts, T tokens of the longest in a batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bs_cluster.errors import DataError

# Enough tokens for per-feature quantiles; more would only sort longer.
QUANTILE_TOKENS = 8192


class CachedStates:
    """Ragged states back to back, without padding, on the device that trains; a batch is padded when taken."""

    def __init__(self, states: Sequence[np.ndarray], device: torch.device | str = "cpu"):
        """``states``: (T, H) each, T may differ. Raises DataError for empty, mismatched or non-finite states."""
        width = states[0].shape[1] if states else 0
        for prompt, states_TH in enumerate(states):
            if states_TH.shape[0] == 0 or states_TH.shape[1] != width:
                raise DataError(f"router states of prompt {prompt} are {states_TH.shape}, wanted (1+ tokens, {width})")
            if not np.isfinite(states_TH).all():
                raise DataError(
                    f"router states of prompt {prompt} are not finite; a residual stream beyond 65504 overflows "
                    "float16: keep the states in float32"
                )
        if not states:
            raise DataError("no router states to work with")
        self.width = width
        self.lengths = [len(states_TH) for states_TH in states]
        self._start = np.concatenate([[0], np.cumsum(self.lengths)])
        self.flat_NH = torch.from_numpy(np.concatenate(states)).to(device)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Padded states (B, T, H) float32 and their mask (B, T), True at tokens."""
        longest = max(self.lengths[prompt] for prompt in prompts)
        states_BTH = self.flat_NH.new_zeros((len(prompts), longest, self.width), dtype=torch.float32)
        mask_BT = torch.zeros((len(prompts), longest), dtype=torch.bool, device=self.flat_NH.device)
        for b, prompt in enumerate(prompts):
            length = self.lengths[prompt]
            states_BTH[b, :length] = self.flat_NH[self._start[prompt] : self._start[prompt + 1]]
            mask_BT[b, :length] = True
        return states_BTH, mask_BT

    def centre_and_scale(self, prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Per-feature median and spread (H,) over these prompts' tokens.

        The spread is a normal's standard deviation read off the 10 % and 90 % quantiles. A few tokens (the first one
        above all) carry states hundreds of times larger in some features; a plain standard deviation would be
        theirs alone and flatten every other token.
        """
        flat_NH = torch.cat([self.flat_NH[self._start[p] : self._start[p + 1]] for p in prompts])
        step = -(-len(flat_NH) // QUANTILE_TOKENS)
        sorted_NH = flat_NH[::step].float().sort(dim=0).values
        low_H, centre_H, high_H = (sorted_NH[round(q * (len(sorted_NH) - 1))] for q in (0.1, 0.5, 0.9))
        scale_H = (high_H - low_H) / 2.563
        # A feature that hardly varies tells nothing: do not blow its rounding noise up.
        return centre_H, scale_H.clamp_min(1e-3 * float(scale_H.mean()) + 1e-8)
