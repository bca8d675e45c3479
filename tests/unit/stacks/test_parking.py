"""Stacks that wait in the host's memory: they cost the device nothing, and nothing is another for it."""

from __future__ import annotations

import pytest
import torch
from stack_kit import config, stacked_model, tuner

from bs_cluster.adapter_format import PARTS

NAMES = ["chat_r1", "chat_r2", "code_r1", "math_r1"]
IDS = torch.tensor([[3, 5, 7, 9, 11, 13]])


@pytest.fixture(params=["gemma3", "llama"])
def peft(request):
    return stacked_model(request.param, NAMES)


def logits(peft) -> torch.Tensor:
    with torch.no_grad():
        return peft(input_ids=IDS).logits


@pytest.mark.parametrize("firing", [[], ["code_r1"], ["chat_r1", "chat_r2"], ["chat_r2", "math_r1"]])
def test_what_fires_computes_the_same_bits_whoever_waits(peft, firing):
    model = tuner(peft)
    model.fire(firing)
    whole = logits(peft)
    model.park(name for name in NAMES if name not in firing)
    assert torch.equal(logits(peft), whole)
    assert all(site.packed is None or site.packed.names == tuple(firing) for site in model.sites)
    model.fire(NAMES)
    everything = logits(peft)
    assert not model.composition.parked
    model.fire(firing)
    assert torch.equal(logits(peft), whole)
    model.fire(NAMES)
    assert torch.equal(logits(peft), everything)


def test_a_stack_that_learns_beside_parked_ones_learns_the_same(peft):
    def gradients(parked: list[str]) -> list[torch.Tensor]:
        model = tuner(peft)
        model.fire(NAMES)
        logits(peft)
        model.fire(["chat_r1"])
        model.park(parked)
        model.fire(["chat_r1"], train="math_r1")
        assert model.composition.parked == set(parked)
        peft.zero_grad()
        peft(input_ids=IDS).logits.square().sum().backward()
        return [getattr(site, part)["math_r1"].grad.clone() for site in model.sites for part in PARTS[:3]]

    for mine, theirs in zip(gradients(["chat_r2", "code_r1"]), gradients([]), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kept", [[], ["chat_r2"]])
def test_the_block_that_they_were_in_goes_at_once(peft, kept):
    """Though no forward follows: a base alone scores next, and an optimizer makes its buffers."""
    model = tuner(peft)
    logits(peft)
    whole = [site.packed.read_XI.untyped_storage() for site in model.sites]
    model.fire(kept)
    model.park(name for name in NAMES if name not in kept)
    for site, before in zip(model.sites, whole, strict=True):
        held = {getattr(site, part)[name].untyped_storage().data_ptr() for part in PARTS for name in NAMES}
        assert before.data_ptr() not in held
        assert site.packed is None if not kept else site.packed.names == tuple(kept)
        assert site.chosen is None


@pytest.mark.gpu
def test_what_is_parked_leaves_the_gpu_and_comes_back():
    peft = stacked_model("llama", NAMES).to("cuda")
    model = tuner(peft)
    ids = IDS.to("cuda")
    with torch.no_grad():
        model.fire(NAMES)
        before = peft(input_ids=ids).logits
        model.fire([])
        model.park(NAMES)
        assert {getattr(site, part)[name].device.type for site in model.sites for part in PARTS for name in NAMES} == {
            "cpu"
        }
        model.fire(NAMES)
        assert torch.equal(peft(input_ids=ids).logits, before)


def test_only_what_is_off_can_be_parked(peft):
    model = tuner(peft)
    model.fire(["chat_r1"], train="math_r1")
    for name in ("chat_r1", "math_r1", "nobody_r1"):
        with pytest.raises(KeyError, match=name):
            model.park([name])
    model.park(["code_r1"])
    model.park(["code_r1", "chat_r2"])
    assert model.composition.parked == {"code_r1", "chat_r2"}


def test_one_of_the_same_name_as_one_that_was_deleted_is_not_parked(peft):
    model = tuner(peft)
    model.fire(["chat_r1"])
    model.park(["code_r1"])
    peft.delete_adapter("code_r1")
    before = logits(peft)
    peft.add_adapter("code_r1", config("code_r1"))
    model.fire(["chat_r1"])
    assert "code_r1" in model.composition.resident
    assert torch.equal(logits(peft), before)


def test_what_is_parked_is_in_the_dtype_that_it_computes_in():
    peft = stacked_model("llama", NAMES, dtype=torch.bfloat16)
    model = tuner(peft)
    model.fire(["chat_r1"])
    model.park(["code_r1"])
    site = model.sites[0]
    assert {getattr(site, part)["code_r1"].dtype for part in PARTS} == {torch.bfloat16}
    assert site.written(["code_r1", "chat_r1"]).dtype == torch.bfloat16
