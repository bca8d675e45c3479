"""From the meta-router's logits to the gate weights that multiply the stacks.

One function, used wherever a router is judged or served: what is measured is what is served. Shapes: B prompts,
D domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def serve_weights(logits_BD: Tensor, domains: Sequence[str], floors: Mapping[str, float], threshold: float) -> Tensor:
    """Gate weights (B, D) float32 in [0, 1]: the sigmoid, at least a domain's floor, exactly 0 below ``threshold``.

    A floor below the threshold therefore has no effect. Floors of domains that the bundle lacks are ignored.
    """
    floor_D = torch.tensor([floors.get(name, 0.0) for name in domains], device=logits_BD.device)
    weights_BD = torch.maximum(torch.sigmoid(logits_BD.float()), floor_D)
    return torch.where(weights_BD < threshold, 0.0, weights_BD)
