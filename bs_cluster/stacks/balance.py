"""The load-balance loss of the expert routers, as a gradient known before the forward pass.

    L_aux = N/k · Σ_e P_e f_e     P_e mean router probability (with gradient), f_e dispatched fraction (without)

averaged over sites and over all tokens of the global batch. ``f`` is taken from the global batch of the step
before: it carries no gradient, moves slowly, and so the loss is linear in ``P`` and every token's share of the
gradient, ``λ N/k · f_e / (sites · tokens)``, is the same number whatever the accumulation and the world size.
The first step uses the balanced ``f = k/N``, whose gradient is zero.

Shapes: P sites, T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class LoadBalance:
    """What the sites of a model share while a stack trains. One instance a model, counters on its device."""

    experts: int
    top_k: int
    coefficient: float
    sites: int
    device: torch.device
    fraction_PE: torch.Tensor = field(init=False)
    dispatched_PE: torch.Tensor = field(init=False)
    probability_PE: torch.Tensor = field(init=False)
    tokens: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.sites, self.experts)
        self.fraction_PE = torch.full(shape, self.top_k / self.experts, device=self.device)
        self.clear()

    def clear(self) -> None:
        shape = (self.sites, self.experts)
        self.dispatched_PE = torch.zeros(shape, device=self.device)
        self.probability_PE = torch.zeros(shape, device=self.device)
        self.tokens = torch.zeros(self.sites, device=self.device)

    def gradient_ET(self, site: int, tokens_in_step: float, mask_T: torch.Tensor | None) -> torch.Tensor:
        """dL/dp of every token at one site, (E, T) or, where no token is padding, (E, 1)."""
        scale = self.coefficient * self.experts / self.top_k / (self.sites * tokens_in_step)
        gradient_E1 = self.fraction_PE[site, :, None] * scale
        return gradient_E1 if mask_T is None else gradient_E1 * mask_T

    @torch.no_grad()
    def count(self, site: int, softmax_ET: torch.Tensor, p_ET: torch.Tensor, mask_T: torch.Tensor | None) -> None:
        """Adds a micro-batch's tokens: probabilities over all experts, and the top-k that they went to. Padding
        (mask 0) does not count."""
        chosen_ET = p_ET > 0
        if mask_T is not None:
            softmax_ET = softmax_ET * mask_T
            chosen_ET = chosen_ET & mask_T.bool()
        self.dispatched_PE[site] += chosen_ET.sum(1)
        self.probability_PE[site] += softmax_ET.sum(1)
        self.tokens[site] += softmax_ET.shape[1] if mask_T is None else mask_T.sum()

    def totals(self) -> torch.Tensor:
        """Counters since ``clear`` as one tensor (P, 2E + 1), to be summed over ranks in a single all-reduce."""
        return torch.cat([self.dispatched_PE, self.probability_PE, self.tokens[:, None]], dim=1)

    def finish_step(self, totals: torch.Tensor) -> tuple[float, float]:
        """Takes the step's summed counters, remembers ``f`` for the next step and starts over.

        Returns the loss ``L_aux`` of the step just made (1.0 is balanced) and the imbalance, the largest over
        sites of max_e f_e / (k/N) (1.0 is balanced, N/k the worst).
        """
        dispatched_PE, probability_PE, tokens_P1 = totals.split([self.experts, self.experts, 1], dim=1)
        tokens_P1 = tokens_P1.clamp_min(1)
        self.fraction_PE = (dispatched_PE / tokens_P1).float()
        ratio = self.experts / self.top_k
        loss = ratio * (probability_PE / tokens_P1 * self.fraction_PE).sum(1).mean()
        imbalance = ratio * self.fraction_PE.max()
        self.clear()
        return float(loss), float(imbalance)
