"""Hidden states first, then the head; and what the meta-router sees."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import save_tiny_base, tiny_gemma3, tiny_gemma3_multimodal, tiny_llama

from bs_cluster.base.hidden import router_states
from bs_cluster.base.load import load_base
from bs_cluster.config import BaseSection
from bs_cluster.decoder import decoder_and_head
from bs_cluster.errors import BaseModelError

KINDS = {"gemma3": tiny_gemma3, "llama": tiny_llama, "gemma3_multimodal": tiny_gemma3_multimodal}
IDS_BT = torch.arange(4, 28).reshape(2, 12)
MASK_BT = torch.ones_like(IDS_BT)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_head_of_decoder_is_the_models_logits(kind: str):
    model = KINDS[kind]()
    decoder, head, cap = decoder_and_head(model)
    positions_BT = torch.arange(12).expand(2, 12)
    hidden_BTH = decoder(input_ids=IDS_BT, attention_mask=MASK_BT, position_ids=positions_BT).last_hidden_state
    assert cap is None
    assert torch.equal(head(hidden_BTH), model(input_ids=IDS_BT, attention_mask=MASK_BT).logits)


@torch.no_grad()
def test_the_soft_cap_is_handed_out():
    model = tiny_gemma3()
    model.config.final_logit_softcapping = 3.0
    decoder, head, cap = decoder_and_head(model)
    logits_BTV = head(decoder(input_ids=IDS_BT).last_hidden_state)
    assert cap == 3.0
    torch.testing.assert_close(cap * torch.tanh(logits_BTV / cap), model(input_ids=IDS_BT).logits)


@torch.no_grad()
def test_an_adapter_stays_in_the_decoder():
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    decoder, head, _ = decoder_and_head(model)
    assert torch.equal(head(decoder(input_ids=IDS_BT).last_hidden_state), model(input_ids=IDS_BT).logits)


def test_scaled_logits_are_refused_rather_than_wrong():
    model = tiny_llama()
    model.config.logits_scaling = 8.0
    with pytest.raises(BaseModelError, match="logits_scaling"):
        decoder_and_head(model)


def test_a_multimodal_checkpoint_loads_whole_and_decodes_text(tmp_path):
    base = load_base(BaseSection(model=save_tiny_base(tmp_path, "gemma3_multimodal")), device="cpu")
    assert type(base.model).__name__ == "Gemma3ForConditionalGeneration"
    assert router_states(base.model, IDS_BT, MASK_BT, 0.45).shape == (2, 12, 64)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_router_states_blend_the_middle_and_the_end(kind: str):
    model = KINDS[kind](layers=4)
    decoder, _, _ = decoder_and_head(model)
    states = decoder(input_ids=IDS_BT, attention_mask=MASK_BT, output_hidden_states=True).hidden_states
    assert len(states) == 5
    torch.testing.assert_close(router_states(model, IDS_BT, MASK_BT, 1.0), states[2])
    torch.testing.assert_close(router_states(model, IDS_BT, MASK_BT, 0.0), states[4])
    torch.testing.assert_close(router_states(model, IDS_BT, MASK_BT, 0.45), 0.45 * states[2] + 0.55 * states[4])


@pytest.mark.parametrize("kind", KINDS)
def test_router_states_do_not_depend_on_the_padding(kind: str):
    model = KINDS[kind]().to(torch.bfloat16)
    row = IDS_BT[:1, :5]
    alone = router_states(model, row, torch.ones_like(row), 0.45)
    pad = torch.zeros(1, 3, dtype=row.dtype)
    right = router_states(model, torch.cat([row, pad], 1), torch.tensor([[1] * 5 + [0] * 3]), 0.45)[:, :5]
    left = router_states(model, torch.cat([pad, row], 1), torch.tensor([[0] * 3 + [1] * 5]), 0.45)[:, 3:]
    assert alone.dtype == torch.float32
    assert not alone.requires_grad
    torch.testing.assert_close(right, alone, atol=0.05, rtol=0.05)
    torch.testing.assert_close(left, alone, atol=0.05, rtol=0.05)
