"""The two halves of a causal language model, for whoever wants hidden states before the head."""

from __future__ import annotations

from typing import Any

from torch import nn

from bs_cluster.errors import BaseModelError


def decoder_and_head(model: nn.Module) -> tuple[nn.Module, nn.Linear, float | None]:
    """The two halves of a causal language model, and the soft cap that follows them (None without one).

    ``decoder(input_ids, attention_mask, position_ids).last_hidden_state`` is (B, T, H) after the final norm;
    logits are ``head(h)``, then ``cap * tanh(logits / cap)``. Taking h at label positions before the head spares
    the (B, T, vocabulary) tensor. A PeftModel is looked through, its adapters stay in the decoder.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    text_config = inner.config.get_text_config()
    for scale in ("logit_scale", "logits_scaling"):
        if getattr(text_config, scale, None) not in (None, 1, 1.0):
            raise BaseModelError(f"{type(inner).__name__} scales its logits ({scale}), which is not supported yet")
    decoder, head = inner.get_decoder(), inner.get_output_embeddings()
    decoder = getattr(decoder, "language_model", decoder)  # beside a vision tower
    if head is None:
        raise BaseModelError(f"{type(inner).__name__} has no language model head; a causal language model is needed")
    return decoder, head, getattr(text_config, "final_logit_softcapping", None)
