"""What the meta-router learns from beside outcomes: the anchor, from the base's states of training prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.router.anchor import Anchor, fit_anchor

# Router states of tokenised prompts, in their order; True asks for them pooled.
Encode = Callable[[Sequence[Sequence[int]], bool], list[np.ndarray]]


def teach_anchor(
    config: CampaignConfig, domains: Sequence[str], rows: Mapping[str, DomainRows], encode: Encode
) -> Anchor:
    """What training prompts teach."""
    router = config.router
    training = [
        (d, _router_prompt(row, router.max_prompt_length))
        for d, domain in enumerate(domains)
        for row in rows[domain].train[: router.anchor_prompts]
    ]
    features = encode([prompt for _, prompt in training], True)
    return fit_anchor(np.stack(features), [d for d, _ in training], len(domains))


def _router_prompt(row: EncodedRow, limit: int) -> tuple[int, ...]:
    """A training row's prompt as the meta-router sees it; one too long loses what follows its first token."""
    prompt = row.input_ids[: row.prompt_length]
    return prompt if len(prompt) <= limit else (*prompt[:1], *prompt[1 - limit :])
