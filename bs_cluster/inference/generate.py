"""Answers under gate weights: in serving, and where a campaign's answers are checked.

Shapes: B prompts, D domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from bs_cluster.data.batch import pad
from bs_cluster.decoder import decoder_and_head
from bs_cluster.errors import StackError
from bs_cluster.inference.stacked import StackedBase


def greedy_answers(
    stacked: StackedBase,
    prompts: Sequence[Sequence[int]],
    weights_BD: torch.Tensor,
    domains: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    """The text that follows each tokenised prompt, each row under its own gate weights, until the end token or
    ``max_new_tokens``.

    Padded on the left, with a key-value cache. In float32 a row's answer is the one that it gives alone; in bfloat16
    padding rounds sums differently, which can decide between two tokens that are nearly tied. Raises StackError where
    no stack is attached.
    """
    return _answers(stacked, prompts, weights_BD, domains, max_new_tokens=max_new_tokens, do_sample=False)


def drawn_answers(
    stacked: StackedBase,
    prompts: Sequence[Sequence[int]],
    weights_BD: torch.Tensor,
    domains: Sequence[str],
    max_new_tokens: int,
    temperature: float,
) -> list[str]:
    """``greedy_answers`` with every token drawn in proportion to its probability at this temperature, of all tokens:
    by torch's own generator, so that ``torch.manual_seed`` repeats a draw."""
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return _answers(stacked, prompts, weights_BD, domains, max_new_tokens=max_new_tokens, **drawn)


class Drawing(NamedTuple):
    """How a policy's answers are drawn: at most so many tokens, at which temperature."""

    tokens: int
    temperature: float


def drawn_tokens(
    stacked: StackedBase,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
) -> list[list[int]]:
    """A continuation of each tokenised prompt under what fires now, its end token included, drawn at this temperature
    from all tokens: row by row from the row's own seed, so that a draw does not hang on what is drawn beside it."""
    drawing = LogitsProcessorList([_Drawn(seeds, temperature)])
    return generated(stacked, prompts, max_new_tokens=max_new_tokens, do_sample=False, logits_processor=drawing)


def greedy_tokens(stacked: StackedBase, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """The likeliest continuation of each prompt, token by token, under what fires now; its end token included."""
    return generated(stacked, prompts, max_new_tokens=max_new_tokens, do_sample=False)


def said(stacked: StackedBase, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Continuations in words."""
    texts = stacked.base.tokenizer.batch_decode([list(of) for of in tokens], skip_special_tokens=True)
    return [text.strip() for text in texts]


class _Drawn(LogitsProcessor):
    """Leaves of each row's logits one token, drawn by inverting its distribution at a number from the row's own
    generator."""

    def __init__(self, seeds: Sequence[int], temperature: float):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.FloatTensor:
        share_BV = torch.softmax(scores.double() / self.temperature, dim=1).cumsum(1)
        drawn_B1 = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in self.generators])
        at_B1 = drawn_B1.to(scores.device) * share_BV[:, -1:]
        token_B1 = torch.searchsorted(share_BV, at_B1, right=True).clamp_max(scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)  # type: ignore[return-value]


def _answers(
    stacked: StackedBase,
    prompts: Sequence[Sequence[int]],
    weights_BD: torch.Tensor,
    domains: Sequence[str],
    **how: Any,
) -> list[str]:
    if stacked.peft is None:
        raise StackError("no stack is attached to this base; answers under gates need one")
    with stacked.tuner.gates(weights_BD.to(stacked.base.model.device), domains):
        return said(stacked, generated(stacked, prompts, **how))


@torch.no_grad()
def generated(stacked: StackedBase, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
    """What follows each tokenised prompt under what fires now, up to its end token, which is included.

    Padded on the left, with a key-value cache. ``how`` is what transformers' ``generate`` takes.
    """
    model, tokenizer = stacked.base.model, stacked.base.tokenizer
    ids_BT = pad(prompts, tokenizer.pad_token_id, "left")  # type: ignore[arg-type]
    mask_BT = pad([[1] * len(prompt) for prompt in prompts], 0, "left")
    ends = end_tokens(stacked)
    with _last_positions_together(model):
        output_BT = model.generate(  # type: ignore[operator]
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends,
            **how,
        )
    return [_to_its_end(row, ends) for row in output_BT[:, ids_BT.shape[1] :].tolist()]


def _to_its_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: end + 1]


@contextmanager
def _last_positions_together(model: PreTrainedModel) -> Iterator[None]:
    """The head gets the prompts' last positions as a view into all positions, of which torch makes a batch of products,
    each with a copy of the head's weight. Copying the hidden states instead makes it one product: 32 prompts and their
    first tokens take Gemma 3 270M 1.0 s of an AVX-512 core, not 43."""
    _, head, _ = decoder_and_head(model)
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def end_tokens(stacked: StackedBase) -> list[int]:
    """What ends an answer: the token that ends every training row, and those with which the base ends its turns."""
    own = stacked.base.model.generation_config.eos_token_id  # type: ignore[union-attr]
    return sorted({stacked.base.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])})  # type: ignore[list-item]
