"""Which rows go together, and as what tensors. Planning is pure; only the collate functions make tensors.

Shapes: B rows, T tokens. Labels are -100 wherever a token is not a completion token; they are not shifted (the loss
compares position t with label t + 1, as transformers does).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from bs_cluster.data.encode import EncodedRow

IGNORE = -100


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row indices grouped so that rows × longest, the padded area, stays within ``max_tokens``.

    Longest rows first, so that a batch too large for memory fails at once. A row longer than ``max_tokens`` stands
    alone. Depends on ``lengths`` only: every worker plans the same.
    """
    plan: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if plan and (len(plan[-1]) + 1) * lengths[plan[-1][0]] <= max_tokens:
            plan[-1].append(index)
        else:
            plan.append([index])
    return plan


def train_batches(n_rows: int, *, steps: int, global_batch: int, seed: int) -> list[list[int]]:
    """Row indices of each optimizer step's global batch: shuffled epochs, one after another, cut into steps.

    How a step's rows are dealt to workers and accumulation is the caller's cut of the same list, so that one worker
    accumulating two micro-batches and two workers with one each train on the same rows.
    """
    assert n_rows > 0, "no rows to train on"
    stream = _shuffled_epochs(n_rows, seed)
    return [list(itertools.islice(stream, global_batch)) for _ in range(steps)]


def _shuffled_epochs(n_rows: int, seed: int) -> Iterator[int]:
    for epoch in itertools.count():
        order = list(range(n_rows))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        yield from order


def row_labels(row: EncodedRow) -> list[int]:
    """The row's ids with the prompt masked."""
    return [IGNORE] * row.prompt_length + list(row.input_ids[row.prompt_length :])


def pad(sequences: Sequence[Sequence[int]], fill: int, side: Literal["right", "left"] = "right") -> torch.Tensor:
    """The sequences as one int64 tensor (B, T), each filled up to the longest of them on its ``side``."""
    length = max(map(len, sequences))
    fills = [[fill] * (length - len(sequence)) for sequence in sequences]
    if side == "left":
        return torch.tensor([[*blank, *sequence] for sequence, blank in zip(sequences, fills, strict=True)])
    return torch.tensor([[*sequence, *blank] for sequence, blank in zip(sequences, fills, strict=True)])


def collate(rows: Sequence[EncodedRow], pad_id: int) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels``, int64 (B, T), padded on the right to the longest row."""
    return {
        "input_ids": pad([row.input_ids for row in rows], pad_id),
        "attention_mask": pad([[1] * len(row.input_ids) for row in rows], 0),
        "labels": pad([row_labels(row) for row in rows], IGNORE),
    }


def collate_packed(rows: Sequence[EncodedRow]) -> dict[str, torch.Tensor]:
    """The rows end to end in one sequence without padding: ``input_ids``, ``position_ids``, ``labels`` (1, T).

    ``position_ids`` start again at 0 with each row, from which transformers derives attention within rows only; an
    attention mask would switch that off, so there is none. ``row_index_T`` (T,) says which row a token is of. No
    label crosses rows, since each begins with a masked prompt.
    """
    assert all(row.prompt_length > 0 for row in rows)
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    ids = list(itertools.chain.from_iterable(row.input_ids for row in rows))
    labels = list(itertools.chain.from_iterable(map(row_labels, rows)))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.cat([torch.arange(len(row.input_ids)) for row in rows])[None],
        "labels": torch.tensor([labels]),
        "row_index_T": torch.arange(len(rows)).repeat_interleave(lengths),
    }
