"""The loss in chunks over labelled positions is the textbook one; packing rows end to end changes neither it nor its
gradients."""

from __future__ import annotations

import pytest
import torch
from stack_kit import FACTORIES, random_ids, stacked_model, tuner
from tiny import PAD, tiny_gemma3_multimodal
from torch.nn import functional as F

from bs_cluster.data.batch import collate, collate_packed
from bs_cluster.data.encode import EncodedRow
from bs_cluster.stacks import lm_loss
from bs_cluster.stacks.lm_loss import completion_nll

KINDS = ["gemma3", "llama"]


def rows(lengths=((3, 9), (6, 7), (2, 12), (5, 6))) -> list[EncodedRow]:
    """(prompt, whole) lengths of rows with random tokens."""
    return [
        EncodedRow(tuple(random_ids(1, whole, seed=i)[0].tolist()), prompt, f"row{i}", "chat")
        for i, (prompt, whole) in enumerate(lengths)
    ]


def textbook(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    nll = F.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="none"
    )
    return nll[batch["labels"][:, 1:].flatten() != -100]


def learner(kind: str, softcap: float | None = None, dtype: torch.dtype = torch.float32):
    peft = stacked_model(kind, ["chat_r1", "math_r1"])
    tuner(peft).fire(["chat_r1"], train="math_r1")
    model = peft.get_base_model()
    model.config.final_logit_softcapping = softcap
    with torch.no_grad():  # louder logits, so that the cap bends them
        model.get_output_embeddings().weight.mul_(3 if softcap else 1)
    if dtype != torch.float32:
        for name, parameter in model.named_parameters():
            if "stack_" not in name:
                parameter.data = parameter.data.to(dtype)
    return peft


def gradients(peft, loss: torch.Tensor) -> list[torch.Tensor]:
    wanted = [p for name, p in peft.named_parameters() if p.requires_grad and "stack_noise" not in name]
    return list(torch.autograd.grad(loss, wanted))


@pytest.mark.parametrize(("kind", "softcap"), [("gemma3", None), ("gemma3", 2.0), ("llama", None)])
def test_values_and_gradients_are_cross_entropys(kind: str, softcap: float | None):
    peft, batch = learner(kind, softcap), collate(rows(), PAD)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    ours, theirs = peft(**inputs, completion_labels=batch["labels"]), textbook(peft, batch)
    assert ours.shape == (sum(row.completion_length for row in rows()),)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    upstream = torch.linspace(0.2, 1.7, len(ours))  # tokens weighted differently
    for a, b in zip(gradients(peft, ours @ upstream), gradients(peft, theirs @ upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_bf16_stays_near_cross_entropy():
    peft, batch = learner("gemma3", dtype=torch.bfloat16), collate(rows(), PAD)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    ours, theirs = peft(**inputs, completion_labels=batch["labels"]), textbook(peft, batch)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    for a, b in zip(gradients(peft, ours.sum()), gradients(peft, theirs.sum()), strict=True):
        assert (a - b).norm() <= 0.05 * b.norm() + 1e-6


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch, positions: int):
    peft, batch = learner("gemma3"), collate(rows(), PAD)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    whole = peft(**inputs, completion_labels=batch["labels"])
    whole_gradients = gradients(peft, whole.sum())
    monkeypatch.setitem(lm_loss.CHUNK_ELEMENTS, "cpu", positions * 320)
    monkeypatch.setitem(lm_loss.BLOCK_ELEMENTS, "cpu", 2 * 320)
    chunked = peft(**inputs, completion_labels=batch["labels"])
    torch.testing.assert_close(chunked, whole)
    for a, b in zip(gradients(peft, chunked.sum()), whole_gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_only_labelled_positions_count():
    """Published flaw 8: prompt tokens trained on, padding scored."""
    model = FACTORIES["llama"]()
    batch = collate(rows(), PAD)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        before = completion_nll(model, batch["labels"], **inputs)
        padded = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 77)
        after = completion_nll(model, batch["labels"], input_ids=padded, attention_mask=batch["attention_mask"])
        one = torch.full_like(batch["labels"], -100)
        one[2, 7] = batch["labels"][2, 7]
        single = completion_nll(model, one, **inputs)
    assert torch.equal(before, after)
    place = sum(row.completion_length for row in rows()[:2]) + 7 - rows()[2].prompt_length
    torch.testing.assert_close(single, before[place : place + 1])


def test_the_language_side_of_a_multimodal_model_is_scored():
    model, batch = tiny_gemma3_multimodal(), collate(rows(), PAD)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        torch.testing.assert_close(
            completion_nll(model, batch["labels"], **inputs), textbook(model, batch), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_padded_losses_and_gradients(kind: str, train: bool):
    """Longer than the sliding window (64) too: attention stays within rows."""
    peft = learner(kind).train(train)
    some = rows(((3, 9), (6, 70), (2, 12), (5, 6)))
    padded, packed = collate(some, PAD), collate_packed(some)
    inputs = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
    apart = peft(**inputs, completion_labels=padded["labels"])
    together = peft(
        input_ids=packed["input_ids"], position_ids=packed["position_ids"], completion_labels=packed["labels"]
    )
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    for a, b in zip(gradients(peft, together.sum()), gradients(peft, apart.sum()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_batch_without_a_label_has_no_losses_and_a_zero_gradient():
    hidden_NH = torch.randn(0, 8, requires_grad=True)
    nll_N = lm_loss.HeadLoss.apply(hidden_NH, torch.randn(320, 8), torch.zeros(0, dtype=torch.long), None)
    assert nll_N.shape == (0,)
    nll_N.sum().backward()
    assert hidden_NH.grad.shape == (0, 8)
