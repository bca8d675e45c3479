"""The 4-bit base: frozen, differentiable for ever, and its weights known to the bit."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from tiny import save_tiny_base, tiny_llama

from bs_cluster.base.load import LoadedBase, load_base
from bs_cluster.config import BaseSection
from bs_cluster.errors import BaseModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save_tiny_base(tmp_path_factory.mktemp("base"), "gemma3")


@pytest.fixture
def nf4(folder: str) -> LoadedBase:
    return load_base(BaseSection(model=folder), device="cpu")


def input_gradient(base: LoadedBase, ids_BT: torch.Tensor) -> torch.Tensor:
    """Gradient of the loss with respect to the input embeddings, in train mode."""
    embedded = base.model.get_input_embeddings()(ids_BT).detach().requires_grad_(True)
    base.model.train()
    base.model(inputs_embeds=embedded, labels=ids_BT).loss.backward()
    base.model.eval()
    assert embedded.grad is not None
    return embedded.grad


def test_an_eval_forward_changes_no_later_gradient(nf4: LoadedBase):
    ids_BT = torch.arange(4, 52).reshape(2, 24)
    before = input_gradient(nf4, ids_BT)
    with torch.no_grad():
        nf4.model(input_ids=ids_BT)
    after = input_gradient(nf4, ids_BT)
    assert before.abs().sum() > 0
    assert torch.equal(before, after)


def test_every_projection_is_nf4_frozen_and_never_repacked(nf4: LoadedBase):
    layers = {name: m for name, m in nf4.model.named_modules() if isinstance(m, Linear4bit)}
    assert {name.rpartition(".")[2] for name in layers} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())
    assert not any(parameter.requires_grad for parameter in nf4.model.parameters())
    assert not nf4.model.training


def test_without_quantization_the_weights_are_plain(folder: str):
    base = load_base(BaseSection(model=folder, quantization="none", compute_dtype="float32"), device="cpu")
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    assert not any(isinstance(m, Linear4bit) for m in base.model.modules())


def test_the_digest_follows_weights_and_quantization_not_the_path(folder: str, nf4: LoadedBase, tmp_path):
    def digest(model: str, **settings) -> str:
        return load_base(BaseSection(model=model, **settings), device="cpu").ref.digest

    same = save_tiny_base(tmp_path / "same", "gemma3", seed=0)
    other = save_tiny_base(tmp_path / "other", "gemma3", seed=1)
    digests = [digest(other), digest(folder, double_quant=False), digest(folder, quantization="none")]
    assert digest(same) == nf4.ref.digest
    assert len({nf4.ref.digest, *digests}) == 4


def test_tokenizer_pads_on_the_right_and_begins_once(nf4: LoadedBase):
    ids = nf4.tokenizer(["ab", "abcd"], padding=True).input_ids
    assert nf4.tokenizer.padding_side == "right"
    assert [row.count(nf4.tokenizer.bos_token_id) for row in ids] == [1, 1]
    assert ids[0][-1] == nf4.tokenizer.pad_token_id


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    folder = save_tiny_base(tmp_path, "llama")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "<eos>"', '"eos_token": null'))
    with pytest.raises(BaseModelError, match="no eos_token"):
        load_base(BaseSection(model=folder), device="cpu")


def test_a_folder_without_safetensors_is_refused(tmp_path):
    tiny_llama().config.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"no \*\.safetensors"):
        load_base(BaseSection(model=str(tmp_path)), device="cpu")
