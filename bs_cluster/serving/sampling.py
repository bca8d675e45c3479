"""Which token comes next. With a seed the draw is the request's own: it hangs on nothing that shares its batch.

Shapes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """``temperature`` is 0 for the likeliest token; ``top_p`` is the probability of the tokens to draw from;
    ``seed`` is None for another draw each time."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def generator(self, device: torch.device) -> torch.Generator:
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def draw(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token in proportion to its probability at this temperature, of those that ``top_p`` leaves.

    Every token's probability is divided by exponential noise of its own and the largest wins, which is such a draw.
    Rounding in another batch then changes it only where two are nearly tied.
    """
    chance_V = torch.softmax(logits_V.float() / sampling.temperature, dim=0)
    if sampling.top_p < 1:
        chance_V = nucleus(chance_V, sampling.top_p)
    noise_V = torch.empty_like(chance_V).exponential_(generator=generator)
    return int((chance_V / noise_V).argmax())


def nucleus(chance_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """The probabilities of the fewest tokens that together have ``top_p``, 0 elsewhere; the likeliest stays always.

    Tokens below (1 - top_p) / V have less than 1 - top_p together and are never among them, so that a few are sorted
    and not the whole vocabulary.
    """
    likely = (chance_V >= (1 - top_p) / len(chance_V)).nonzero()[:, 0]
    descending, order = chance_V[likely].sort(descending=True, stable=True)
    within = descending.cumsum(0) - descending < top_p
    within[0] = True
    kept = likely[order[within]]
    return torch.zeros_like(chance_V).index_copy_(0, kept, chance_V[kept])
