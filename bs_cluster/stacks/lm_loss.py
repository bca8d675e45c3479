"""Completion loss of a causal language model: hidden states at label positions first, then the head, in chunks.

With Gemma's 262,144 words the logits are the largest tensor of a step, and the head's product a third of its time.
Only positions that carry a label are projected, a chunk at a time; the head is frozen, so a chunk's gradient with
respect to its hidden states is made in the forward pass and its logits are never kept.

Shapes: B rows, T tokens, N label positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import Function

from bs_cluster.decoder import decoder_and_head

# Logits of a chunk, N·V: a product large enough to be worth its reading of the head's weight. Within it the softmax
# goes by blocks of rows that, on a CPU, stay in cache: fresh memory for a chunk cost more than both products.
CHUNK_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 27}
BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}


class HeadLoss(Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, labels_N, softcap):  # type: ignore[override]
        wants_gradient = ctx.needs_input_grad[0]
        precision, device = torch.promote_types(hidden_NH.dtype, torch.float32), hidden_NH.device
        labels, words = hidden_NH.shape[0], weight_VH.shape[0]
        chunk = max(1, min(labels, CHUNK_ELEMENTS.get(device.type, 1 << 25) // words))
        block = max(1, min(chunk, BLOCK_ELEMENTS.get(device.type, 1 << 25) // words))
        nll_N = torch.empty(labels, dtype=precision, device=device)
        dhidden_NH = torch.empty_like(hidden_NH) if wants_gradient else None
        logits_nV = hidden_NH.new_empty(chunk, words)
        rows_rV = torch.empty(block, words, dtype=precision, device=device)
        for start in range(0, labels, chunk):
            part = slice(start, min(start + chunk, labels))
            part_nV = torch.mm(hidden_NH[part], weight_VH.t(), out=logits_nV[: part.stop - start])
            for first in range(0, len(part_nV), block):
                some_rV = part_nV[first : first + block]
                place = slice(start + first, start + first + len(some_rV))
                work_rV = rows_rV[: len(some_rV)]
                nll_N[place] = _softmax_minus_label(some_rV, labels_N[place, None], softcap, work_rV, wants_gradient)
            if dhidden_NH is not None:
                torch.mm(part_nV, weight_VH, out=dhidden_NH[part])
        ctx.save_for_backward(dhidden_NH)
        return nll_N

    @staticmethod
    def backward(ctx, dnll_N):  # type: ignore[override]
        (dhidden_NH,) = ctx.saved_tensors
        return dhidden_NH * dnll_N[:, None].to(dhidden_NH.dtype), None, None, None


def _softmax_minus_label(
    logits_rV: torch.Tensor, labels_r1: torch.Tensor, softcap: float | None, work_rV: torch.Tensor, in_place: bool
) -> torch.Tensor:
    """Negative log-likelihood (r,) of each row's label; ``in_place`` leaves its gradient in ``logits_rV``."""
    work_rV.copy_(logits_rV)
    slope_rV = None
    if softcap is not None:
        work_rV.div_(softcap).tanh_()
        slope_rV = 1 - work_rV**2 if in_place else None
        work_rV.mul_(softcap)
    label_r1, largest_r1 = work_rV.gather(1, labels_r1), work_rV.amax(1, keepdim=True)
    total_r1 = work_rV.sub_(largest_r1).exp_().sum(1, keepdim=True)
    if in_place:
        work_rV.mul_(1 / total_r1)
        work_rV.scatter_add_(1, labels_r1, torch.full_like(total_r1, -1.0))
        logits_rV.copy_(work_rV if slope_rV is None else work_rV.mul_(slope_rV))
    return (largest_r1 + total_r1.log() - label_r1)[:, 0]


def completion_nll(model: nn.Module, labels_BT: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats of each labelled token given what precedes it, shape (N,), fp32.

    ``model`` is a transformers causal LM; ``labels_BT`` holds token ids where a loss is wanted and -100 elsewhere
    (position t is predicted from position t-1); ``inputs`` go to the decoder (``input_ids``, ``attention_mask`` or
    ``position_ids``). The N values are in row-major order of the labelled positions.
    """
    decoder, head, softcap = decoder_and_head(model)
    hidden_BTH = decoder(**inputs, use_cache=False).last_hidden_state
    next_BT = labels_BT[:, 1:]
    labelled_BT = next_BT != -100
    hidden_NH = hidden_BTH[:, :-1][labelled_BT]
    return HeadLoss.apply(hidden_NH, head.weight, next_BT[labelled_BT], softcap)  # type: ignore[return-value]
