"""Gate weights: zero means the bare base to the bit, a row's weights are its own, and what is off costs nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from stack_kit import add_stacks, random_ids, stacked_model, tuner
from tiny import save_tiny_base, tiny_gemma3_multimodal

from bs_cluster.base.load import load_base
from bs_cluster.config.schema import BaseSection

STACKS = ["chat_r1", "chat_r2", "code_r1", "math_r1"]
DOMAINS = ["chat", "code", "math"]


@pytest.fixture(scope="module", params=["nf4", "float32"])
def pair(request, tmp_path_factory):
    """(model with four stacks, its bare logits before any stack was there, ids)."""
    folder = save_tiny_base(tmp_path_factory.mktemp("base"), "gemma3")
    settings = {} if request.param == "nf4" else {"quantization": "none", "compute_dtype": "float32"}
    model = load_base(BaseSection(model=folder, **settings), device="cpu").model
    ids_BT = random_ids(3, 12)
    with torch.no_grad():
        bare = model(input_ids=ids_BT).logits
    peft = add_stacks(model, STACKS)
    tuner(peft).fire(STACKS)
    return peft.eval(), bare, ids_BT


@torch.no_grad()
def gated(peft, ids_BT: torch.Tensor, weights_BD) -> torch.Tensor:
    with tuner(peft).gates(torch.tensor(weights_BD), DOMAINS):
        return peft(input_ids=ids_BT).logits


def test_all_weights_at_zero_is_the_bare_base_bit_for_bit(pair):
    peft, bare, ids_BT = pair
    assert torch.equal(gated(peft, ids_BT, [[0.0] * 3] * 3), bare)
    tuner(peft).fire([])
    with torch.no_grad():
        assert torch.equal(peft(input_ids=ids_BT).logits, bare)
    tuner(peft).fire(STACKS)


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_row_at_zero_in_a_mixed_batch_is_the_bare_base_bit_for_bit(pair, silent: int):
    peft, bare, ids_BT = pair
    weights_BD = [[1.0, 0.5, 1.0] for _ in range(3)]
    weights_BD[silent] = [0.0, 0.0, 0.0]
    mixed = gated(peft, ids_BT, weights_BD)
    assert torch.equal(mixed[silent], bare[silent])
    assert not any(torch.equal(mixed[row], bare[row]) for row in range(3) if row != silent)


def test_weights_of_one_are_the_ungated_forward_bit_for_bit(pair):
    peft, _, ids_BT = pair
    with torch.no_grad():
        ungated = peft(input_ids=ids_BT).logits
    assert torch.equal(gated(peft, ids_BT, [[1.0] * 3] * 3), ungated)


@pytest.mark.parametrize("mask", [m for m in itertools.product([0.0, 1.0], repeat=3) if any(m)])
def test_gating_equals_firing_only_those_domains(pair, mask: tuple[float, ...]):
    """Also where the domains that are on are not neighbours in the block (chat and math without code)."""
    peft, _, ids_BT = pair
    with tuner(peft).gates(torch.tensor([mask] * 3), DOMAINS):
        active = tuner(peft).composition.active
        with torch.no_grad():
            by_gates = peft(input_ids=ids_BT).logits
    on = [name for name in STACKS if mask[DOMAINS.index(name.split("_")[0])]]
    assert list(active) == on
    tuner(peft).fire(on)
    with torch.no_grad():
        assert torch.equal(peft(input_ids=ids_BT).logits, by_gates)
    tuner(peft).fire(STACKS)


def test_a_domain_at_zero_for_the_whole_batch_is_left_out_of_the_product(pair):
    peft, _, _ = pair
    composition = tuner(peft).composition
    with tuner(peft).gates(torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]]), DOMAINS):
        assert composition.active == ("chat_r1", "chat_r2", "math_r1")
        assert composition.weights_BS.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert composition.active == tuple(STACKS)
    assert composition.weights_BS is None


def test_what_fires_side_by_side_is_a_slice_of_the_block_and_else_one_copy_that_is_kept():
    peft = stacked_model("llama", [*STACKS, "reasoning_r1"])
    stacks = tuner(peft)
    site, m = stacks.sites[0], stacks.sites[0].experts * stacks.sites[0].rank

    def rows() -> torch.Tensor:
        peft(input_ids=random_ids(1, 3))
        read_XI, write_MO = site._rows(torch.float32)
        assert len(read_XI) // (m + site.experts) == len(write_MO) // m
        return write_MO

    def values(*names: str) -> torch.Tensor:
        return torch.cat([site.stack_B[name].detach().flatten(0, 1) for name in names])

    stacks.fire(["chat_r2", "code_r1"])
    assert rows().data_ptr() == site.packed.write_MO[m:].data_ptr()
    assert torch.equal(rows(), values("chat_r2", "code_r1"))
    stacks.fire(["chat_r1", "code_r1"])
    assert rows().data_ptr() == rows().data_ptr() == site.chosen.write_MO.data_ptr()
    assert torch.equal(rows(), values("chat_r1", "code_r1"))
    stacks.fire(["code_r1", "math_r1"], train="reasoning_r1")  # the last ones: the learner's room is right behind them
    assert rows().untyped_storage().data_ptr() == site.packed.write_MO.untyped_storage().data_ptr()
    assert torch.equal(rows(), values("code_r1", "math_r1", "reasoning_r1"))
    stacks.fire(["chat_r1", "chat_r2"], train="reasoning_r1")  # others stand between them and that room
    assert torch.equal(rows(), values("chat_r1", "chat_r2", "reasoning_r1"))


def test_each_row_sees_its_own_weights():
    """A mixed batch equals each row alone, for weights between zero and one too."""
    peft = stacked_model("llama", STACKS).eval()
    ids_BT = random_ids(4, 9)
    weights_BD = [[0.3, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.2], [0.0, 0.7, 0.0]]
    mixed = gated(peft, ids_BT, weights_BD)
    for row in range(4):
        alone = gated(peft, ids_BT[row : row + 1], weights_BD[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_columns_are_matched_by_name_and_a_domain_not_named_is_off():
    """Published flaw 10: gate weights by position apply the wrong stack."""
    peft = stacked_model("llama", STACKS).eval()
    ids_BT = random_ids(2, 6)
    one = gated(peft, ids_BT, [[0.2, 0.0, 0.9], [0.5, 0.4, 0.0]])
    with torch.no_grad(), tuner(peft).gates(torch.tensor([[0.9, 0.2, 0.0], [0.0, 0.5, 0.4]]), ["math", "chat", "code"]):
        assert torch.equal(peft(input_ids=ids_BT).logits, one)
    with tuner(peft).gates(torch.ones(2, 1), ["code"]):
        assert tuner(peft).composition.active == ("code_r1",)
    with tuner(peft).gates(torch.ones(2, 2), ["code", "medical"]):
        assert tuner(peft).composition.active == ("code_r1",)


def test_gates_are_put_back_when_the_forward_fails():
    peft = stacked_model("llama", STACKS)
    with pytest.raises(RuntimeError, match="stop"), tuner(peft).gates(torch.zeros(1, 3), DOMAINS):
        raise RuntimeError("stop")
    assert tuner(peft).composition.active == tuple(STACKS)


def test_only_the_language_side_of_a_multimodal_model_is_wrapped():
    model = tiny_gemma3_multimodal()
    ids_BT = random_ids(2, 6)
    with torch.no_grad():
        bare = model(input_ids=ids_BT).logits
    peft = add_stacks(model, ["chat_r1", "code_r1"])
    names = tuner(peft).site_names()
    assert len(names) == 2 * 7
    assert all("language_model" in name for name in names)
    assert not any("stack_" in name for name, _ in model.named_parameters() if "vision_tower" in name)
    vision = [name for name, _ in model.named_modules() if "vision_tower" in name and name.endswith("q_proj")]
    assert vision, "the vision side has projections of the same names"
    tuner(peft).fire(["chat_r1"])
    with torch.no_grad():
        assert not torch.equal(peft(input_ids=ids_BT).logits, bare)
        with tuner(peft).gates(torch.zeros(2, 1), ["chat"]):
            assert torch.equal(peft(input_ids=ids_BT).logits, bare)
