"""What the meta-router sees of a prompt: hidden states of the base alone."""

# Shapes: B prompt, T token, H hidden size of the base.
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bs_cluster.decoder import decoder_and_head


@torch.no_grad()
def router_states(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, mid_weight: float) -> Tensor:
    """``mid_weight * h_mid + (1 - mid_weight) * h_last``, (B, T, H) in fp32; no logits are computed.

    ``h_mid`` is the residual stream half way up, ``h_last`` the state after the final norm. Positions count real
    tokens only, so left and right padding agree; values at padding mean nothing. The caller passes the base
    without stacks, or with all of them off.
    """
    decoder, _, _ = decoder_and_head(model)
    position_ids_BT = (attention_mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)
    states = decoder(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT,
        position_ids=position_ids_BT,
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    mid_BTH, last_BTH = states[len(states) // 2].float(), states[-1].float()
    return mid_weight * mid_BTH + (1.0 - mid_weight) * last_BTH


def pool_states(states_TH: np.ndarray) -> np.ndarray:
    """One prompt's states (T, H) as features (2H,) float32: their mean, and the last token's, where the template ends.

    The first token is left out of the mean where there are others: it is the same in every prompt, and so large that
    little else would be seen.
    """
    states_TH = states_TH.astype(np.float32)
    return np.concatenate([states_TH[min(1, len(states_TH) - 1) :].mean(axis=0), states_TH[-1]])
