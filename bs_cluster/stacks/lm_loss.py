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

CHUNK_ELEMENTS = 1 << 24  # logits of one chunk, N·V: 64 MiB in fp32


class _HeadLoss(Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, labels_N, softcap):  # type: ignore[override]
        wants_gradient = ctx.needs_input_grad[0]
        nll_N = torch.empty(hidden_NH.shape[0], dtype=torch.float32, device=hidden_NH.device)
        dhidden_NH = torch.empty_like(hidden_NH) if wants_gradient else None
        step = max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
        for start in range(0, hidden_NH.shape[0], step):
            part = slice(start, start + step)
            logits_nV = (hidden_NH[part] @ weight_VH.t()).to(torch.promote_types(hidden_NH.dtype, torch.float32))
            if softcap is not None:
                logits_nV = torch.tanh(logits_nV / softcap) * softcap
            labels_n1 = labels_N[part, None]
            log_total_n1 = torch.logsumexp(logits_nV, dim=1, keepdim=True)
            nll_N[part] = (log_total_n1 - logits_nV.gather(1, labels_n1))[:, 0]
            if dhidden_NH is not None:
                probs_nV = (logits_nV - log_total_n1).exp_()
                probs_nV.scatter_add_(1, labels_n1, torch.full_like(labels_n1, -1.0, dtype=probs_nV.dtype))
                if softcap is not None:
                    probs_nV *= 1 - (logits_nV / softcap) ** 2
                dhidden_NH[part] = probs_nV.to(hidden_NH.dtype) @ weight_VH
        ctx.save_for_backward(dhidden_NH)
        return nll_N

    @staticmethod
    def backward(ctx, dnll_N):  # type: ignore[override]
        (dhidden_NH,) = ctx.saved_tensors
        return dhidden_NH * dnll_N[:, None].to(dhidden_NH.dtype), None, None, None


def completion_nll(model: nn.Module, labels_BT: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats of each labelled token given what precedes it, shape (N,), fp32.

    ``model`` is a transformers causal LM; ``labels_BT`` holds token ids where a loss is wanted and -100 elsewhere
    (position t is predicted from position t-1); ``inputs`` go to the decoder (``input_ids``, ``attention_mask`` or
    ``position_ids``). The N values are in row-major order of the labelled positions.
    """
    hidden_BTH = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
    next_BT = labels_BT[:, 1:]
    labelled_BT = next_BT != -100
    hidden_NH = hidden_BTH[:, :-1][labelled_BT]
    head = model.get_output_embeddings()  # type: ignore[operator]
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)  # type: ignore[union-attr]
    return _HeadLoss.apply(hidden_NH, head.weight, next_BT[labelled_BT], softcap)  # type: ignore[return-value]


def decoder_of(model: nn.Module) -> nn.Module:
    """The text decoder of a causal LM, also of one that sees pictures (Gemma 3 12B's language side)."""
    decoder = model.get_decoder()  # type: ignore[operator]
    return getattr(decoder, "language_model", decoder)
