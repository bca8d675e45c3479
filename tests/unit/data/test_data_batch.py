"""Batches: every row once, the same tokens padded or packed, the same rows however many workers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import PAD, tiny_gemma3

from bs_cluster.data.batch import IGNORE, collate, collate_packed, pad, plan_batches, train_batches
from bs_cluster.data.encode import EncodedRow

lengths = st.lists(st.integers(1, 60), max_size=60)
tokens = st.lists(st.integers(4, 99), min_size=1, max_size=9)
rows = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=8).map(
    lambda pairs: [EncodedRow((*p, *c), len(p), f"{i}", "d") for i, (p, c) in enumerate(pairs)]
)


@given(lengths, st.integers(1, 200))
def test_a_plan_holds_every_row_once_within_the_padded_area(lengths, max_tokens):
    plan = plan_batches(lengths, max_tokens)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens
    assert plan_batches(lengths, max_tokens) == plan


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5).filter(any), st.booleans())
def test_padding_fills_each_row_up_to_the_longest_on_the_side_asked_for(sequences, left):
    padded_BT = pad(sequences, -1, "left" if left else "right")
    longest = max(map(len, sequences))
    assert padded_BT.shape == (len(sequences), longest)
    for row, sequence in zip(padded_BT.tolist(), sequences, strict=True):
        blank = [-1] * (longest - len(sequence))
        assert row == (blank + sequence if left else sequence + blank)


@given(rows)
def test_padding_holds_every_row_and_labels_its_completion_only(rows):
    batch = collate(rows, pad_id=0)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    for row, ids, mask, labels in zip(rows, *batch.values(), strict=True):
        n = len(row.input_ids)
        assert tuple(ids[:n].tolist()) == row.input_ids
        assert mask.tolist() == [1] * n + [0] * (len(ids) - n)
        assert (ids[n:] == 0).all()
        assert labels[row.prompt_length : n].tolist() == list(row.input_ids[row.prompt_length :])
        assert (labels[: row.prompt_length] == IGNORE).all()
        assert (labels[n:] == IGNORE).all()


@given(rows)
def test_packing_holds_what_padding_holds(rows):
    padded, packed = collate(rows, pad_id=0), collate_packed(rows)
    real = padded["attention_mask"].bool()
    assert "attention_mask" not in packed
    assert torch.equal(packed["input_ids"][0], padded["input_ids"][real])
    assert torch.equal(packed["labels"][0], padded["labels"][real])
    positions = (padded["attention_mask"].cumsum(1) - 1)[real]
    assert torch.equal(packed["position_ids"][0], positions)
    assert torch.equal(packed["row_index_T"], real.nonzero()[:, 0])


def test_a_model_gives_packed_rows_the_logits_it_gives_padded_ones():
    """The claim that packing rests on: position ids alone keep rows from attending to each other."""
    model = tiny_gemma3()
    rows = [EncodedRow(tuple(range(4, 4 + n)), 2, str(n), "d") for n in (9, 5, 70)]  # 70: past the sliding window
    padded, packed = collate(rows, PAD), collate_packed(rows)
    real = padded["attention_mask"].bool()
    with torch.no_grad():
        apart = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[real]
        together = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"], use_cache=False).logits[0]
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


@given(st.integers(1, 40), st.integers(0, 20), st.integers(1, 12), st.integers(0, 99))
def test_an_epoch_is_every_row_once_and_the_steps_are_full(n_rows, steps, global_batch, seed):
    batches = train_batches(n_rows, steps=steps, global_batch=global_batch, seed=seed)
    assert [len(batch) for batch in batches] == [global_batch] * steps
    stream = [index for batch in batches for index in batch]
    for start in range(0, len(stream) - n_rows + 1, n_rows):
        assert sorted(stream[start : start + n_rows]) == list(range(n_rows))
    assert train_batches(n_rows, steps=steps + 3, global_batch=global_batch, seed=seed)[:steps] == batches


def test_another_seed_and_another_epoch_shuffle_otherwise():
    first, second = train_batches(50, steps=2, global_batch=50, seed=1)
    assert first != second
    assert train_batches(50, steps=1, global_batch=50, seed=2) != [first]


def test_no_rows_to_train_on_is_our_error():
    with pytest.raises(AssertionError, match="no rows"):
        train_batches(0, steps=1, global_batch=1, seed=0)
