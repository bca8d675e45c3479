"""What the meta-router learns from, gathered: outcomes, the base's states of the sweep's prompts, the anchor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.fit import Lessons
from bs_cluster.sweep.outcomes import OutcomeTable

# Router states of tokenised prompts, in their order; True asks for them pooled.
Encode = Callable[[Sequence[Sequence[int]], bool], list[np.ndarray]]


def gather_lessons(
    config: CampaignConfig,
    table: OutcomeTable,
    rows: Mapping[str, DomainRows],
    unowned: DomainRows,
    encode: Encode,
) -> Lessons:
    """The base's states of the sweep's prompts, and the anchor that training prompts teach. The table's rows are the
    sweep rows of ``rows``, in the order of its domains, then the ``unowned``."""
    router, domains = config.router, table.domains
    parts = [*(rows[domain] for domain in domains), unowned]
    states = encode([prompt for part in parts for prompt in part.router_prompts], router.kind == "anchored")
    training = [
        (d, _router_prompt(row, router.max_prompt_length))
        for d, domain in enumerate(domains)
        for row in rows[domain].train[: router.anchor_prompts]
    ]
    features = encode([prompt for _, prompt in training], True)
    anchor = fit_anchor(np.stack(features), [d for d, _ in training], len(domains))
    return Lessons(table, states, anchor, router, config.seed)


def _router_prompt(row: EncodedRow, limit: int) -> tuple[int, ...]:
    """A training row's prompt as the meta-router sees it; one too long loses what follows its first token."""
    prompt = row.input_ids[: row.prompt_length]
    return prompt if len(prompt) <= limit else (*prompt[:1], *prompt[1 - limit :])
