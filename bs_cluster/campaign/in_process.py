"""Sweep rows scored and prompts encoded in this process, in batches as a campaign's evaluators make them.

Shapes: D domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bs_cluster.campaign.lessons import Encode
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.encode import EncodedRow
from bs_cluster.inference.evaluator import encode_states
from bs_cluster.inference.scoring import score_routed
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import RowLoss
from bs_cluster.sweep.combinations import active_mask
from bs_cluster.sweep.plan import plan_work


class Scorer:
    """``rows`` by their ids, under gate weights of ``domains``."""

    def __init__(self, stacked: StackedBase, rows: Sequence[EncodedRow], domains: Sequence[str], batch_tokens: int):
        self.stacked, self.domains, self.batch_tokens = stacked, tuple(domains), batch_tokens
        self.rows = {row.id: row for row in rows}

    def __call__(self, asked: Sequence[tuple[str, Sequence[float]]]) -> list[RowLoss]:
        """Losses of these rows, each under its own gate weights (D)."""
        rows, weights = [self.rows[id] for id, _ in asked], [gates for _, gates in asked]
        requests = [(place, active_mask(gates)) for place, gates in enumerate(weights)]
        found: dict[int, RowLoss] = {}
        for batch in plan_work(requests, [len(row.input_ids) for row in rows], self.batch_tokens):
            places = [place for place, _ in batch.requests]
            together, gates = [rows[place] for place in places], [weights[place] for place in places]
            found |= zip(places, score_routed(self.stacked, together, gates, self.domains), strict=True)
        return [found[place] for place in range(len(asked))]


def encoder(stacked: StackedBase, config: CampaignConfig) -> Encode:
    """In the batches of the campaign's evaluators."""

    def encode(prompts: Sequence[Sequence[int]], pooled: bool) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        lengths = [len(prompt) for prompt in prompts]
        for batch in plan_work([(i, 0) for i in range(len(prompts))], lengths, config.sweep.batch_tokens):
            places = [place for place, _ in batch.requests]
            asked = [prompts[place] for place in places]
            found |= zip(places, encode_states(stacked, asked, config.router.mid_weight, pooled), strict=True)
        return [found[place] for place in range(len(prompts))]

    return encode
