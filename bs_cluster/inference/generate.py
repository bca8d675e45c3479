"""Answers under gate weights: in serving, and where a campaign's answers are checked.

Shapes: B prompts, D domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

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


@torch.no_grad()
def _answers(
    stacked: StackedBase,
    prompts: Sequence[Sequence[int]],
    weights_BD: torch.Tensor,
    domains: Sequence[str],
    **how: Any,
) -> list[str]:
    if stacked.peft is None:
        raise StackError("no stack is attached to this base; answers under gates need one")
    model, tokenizer = stacked.base.model, stacked.base.tokenizer
    ids_BT = pad(prompts, tokenizer.pad_token_id, "left")  # type: ignore[arg-type]
    mask_BT = pad([[1] * len(prompt) for prompt in prompts], 0, "left")
    with stacked.tuner.gates(weights_BD.to(model.device), domains), _last_positions_together(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end_tokens(stacked),
            **how,
        )
    texts = tokenizer.batch_decode(output[:, ids_BT.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


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
