"""What a worker process keeps for the length of a campaign: the base, attached stacks, rows, the coordinator.

Loading a base and starting a process cost more than a short round, so one Ray Train run serves the whole campaign
and its workers pull step after step (``worker.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.events import Event
from bs_cluster.inference.scoring import score_batch
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import RowLoss
from bs_cluster.stacks.sharded_base import ShardedBase
from bs_cluster.store.store import Store
from bs_cluster.training.preemption import Leaving
from bs_cluster.training.ranks import sum_over_ranks, world_rank, world_size
from bs_cluster.watchdog import pulse


@dataclass
class Session:
    """``rows`` fetches a domain's rows; ``report`` tells people what happens (rank 0 only says something); ``leaving``
    is asked by all ranks together which of their nodes are about to go."""

    config: CampaignConfig
    stacked: StackedBase
    store: Store
    rows: Callable[[str], DomainRows]
    report: Callable[[Event], None]
    leaving: Callable[[], Leaving | None] = field(default=lambda: None)
    base_losses: dict[str, list[RowLoss]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sharded: ShardedBase | None = None
        if self.config.training.zero_stage == 3 and world_size() > 1:
            stack = self.config.stack
            self.sharded = ShardedBase(self.stacked.base.model, stack.target_modules, stack.exclude_modules)

    @property
    def rank(self) -> int:
        return world_rank()

    def uneven(self) -> AbstractContextManager[None]:
        """Within it ranks may run different numbers of forwards; every rank enters it."""
        return nullcontext() if self.sharded is None else self.sharded.uneven()

    def score(self, rows: Sequence[EncodedRow]) -> list[RowLoss]:
        """Losses of these rows under what fires now, in row order; batches are dealt out over the ranks.

        How rows are batched depends on the rows alone, so the bits do not depend on the world size.
        """
        plan = plan_batches([len(row.input_ids) for row in rows], self.config.training.eval_batch_tokens)
        sums = torch.zeros(len(rows), 2, dtype=torch.float64)
        with self.uneven():
            for number, batch in enumerate(plan):
                pulse()
                if number % world_size() == world_rank():
                    for index, loss in zip(batch, score_batch(self.stacked, [rows[i] for i in batch]), strict=True):
                        sums[index] = torch.tensor([loss.nll, loss.tokens], dtype=torch.float64)
        return [RowLoss(nll, int(tokens)) for nll, tokens in sum_over_ranks(sums).tolist()]


def device_of(config: CampaignConfig) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if config.training.use_gpu else torch.device("cpu")
