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
    counts_PX: torch.Tensor = field(init=False)  # since ``clear``: dispatched E, probability E, tokens 1

    def __post_init__(self) -> None:
        shape = (self.sites, self.experts)
        self.fraction_PE = torch.full(shape, self.top_k / self.experts, device=self.device)
        self.clear()

    def clear(self) -> None:
        self.counts_PX = torch.zeros(self.sites, 2 * self.experts + 1, device=self.device)

    def gradient_ET(self, site: int, tokens_in_step: float, mask_T: torch.Tensor | None) -> torch.Tensor:
        """dL/dp of every token at one site, (E, T) or, where no token is padding, (E, 1)."""
        scale = self.coefficient * self.experts / self.top_k / (self.sites * tokens_in_step)
        gradient_E1 = self.fraction_PE[site, :, None] * scale
        return gradient_E1 if mask_T is None else gradient_E1 * mask_T

    @torch.no_grad()
    def count(self, site: int, softmax_ET: torch.Tensor, chosen_ET: torch.Tensor, mask_T: torch.Tensor | None) -> None:
        """Adds a micro-batch's tokens: probabilities over all experts, and the ``top_k`` that they went to. Padding
        (mask 0) does not count."""
        both_XT = torch.cat([chosen_ET.to(softmax_ET.dtype), softmax_ET, torch.ones_like(softmax_ET[:1])])
        self.counts_PX[site] += both_XT.sum(1) if mask_T is None else both_XT @ mask_T.to(both_XT.dtype)

    def totals(self) -> torch.Tensor:
        """Counters since ``clear``, (P, 2E + 1), to be summed over ranks in a single all-reduce."""
        return self.counts_PX.clone()

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
