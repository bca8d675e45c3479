"""A domain's training tokens, streamed once more past whatever watches the sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bs_cluster.data.batch import collate_packed, plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.decoder import decoder_and_head
from bs_cluster.events import Measuring
from bs_cluster.stacks.moments import Observer
from bs_cluster.training.ranks import sum_over_ranks, world_rank, world_size
from bs_cluster.training.session import Session
from bs_cluster.watchdog import pulse


@torch.no_grad()
def stream_tokens(session: Session, domain: str, what: str, rows: Sequence[EncodedRow], observer: Observer) -> None:
    """Every token of ``rows`` under what fires now, packed, batches dealt out over ranks; then ``observer`` holds the
    sums of all of them. ``domain`` is the one that closes and ``what`` is measured of it, for those who wait."""
    model = session.stacked.base.model
    decoder, _, _ = decoder_and_head(model)
    plan = plan_batches([len(row.input_ids) for row in rows], session.config.training.eval_batch_tokens)
    with session.uneven():
        for number, batch in enumerate(plan):
            pulse()
            if number % world_size() != world_rank():
                continue
            tensors = collate_packed([rows[i] for i in batch])
            observer.row_index_T = torch.tensor(batch)[tensors["row_index_T"]].to(model.device)
            inputs = {key: tensors[key].to(model.device) for key in ("input_ids", "position_ids")}
            decoder(**inputs, use_cache=False)
            if session.rank == 0:
                session.report(Measuring(domain, what, number + 1, len(plan)))
    for tensor in observer.tensors():
        sum_over_ranks(tensor)


def spaced(rows: Sequence[EncodedRow], count: int) -> list[EncodedRow]:
    """At most ``count`` of the rows, evenly spaced, the same on every rank."""
    taken = min(count, len(rows))
    return [rows[place * len(rows) // taken] for place in range(taken)]
