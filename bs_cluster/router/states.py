"""Router states of many prompts, encoded once and kept as one tensor.

Shapes: N tokens of all prompts together, B prompts, T tokens of the longest in a batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bs_cluster.errors import DataError

# Enough tokens for a mean and a deviation; all of them in float32 would be the largest tensor of the training.
STATISTICS_TOKENS = 8192


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
                    f"router states of prompt {prompt} are not finite; the base is broken, or overflows its own dtype"
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
        """Per-feature mean and standard deviation (H,) over these prompts' tokens (evenly thinned if very many)."""
        flat_NH = torch.cat([self.flat_NH[self._start[p] : self._start[p + 1]] for p in prompts])
        step = -(-len(flat_NH) // STATISTICS_TOKENS)
        scale_H, centre_H = torch.std_mean(flat_NH[::step].float(), dim=0, correction=0)
        # A feature that hardly varies tells nothing: do not blow its rounding noise up.
        return centre_H, scale_H.clamp_min(1e-3 * scale_H.median().item() + 1e-8)
