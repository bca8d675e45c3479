"""What a user can get wrong is refused, and the message names it."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from stack_kit import FACTORIES, config, orthonormal, stacked_model, tuner
from torch import nn

from bs_cluster.base.load import LoadedBase
from bs_cluster.basis import Basis
from bs_cluster.errors import StackError
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import BaseRef
from bs_cluster.stacks import StackConfig


def test_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match="c_attn"):
        get_peft_model(FACTORIES["llama"](), config("chat_r1", target_modules=["c_attn"]))


def test_a_target_that_is_not_linear():
    with pytest.raises(ValueError, match=r"model\.embed_tokens is a .*Embedding; stacks wrap linear"):
        get_peft_model(FACTORIES["llama"](), config("chat_r1", target_modules=["embed_tokens"]))


def test_firing_a_stack_that_is_not_loaded():
    stacks = tuner(stacked_model("llama", ["chat_r1"]))
    with pytest.raises(KeyError, match=r"code_r1.*not loaded.*chat_r1"):
        stacks.fire(["code_r1"])
    with pytest.raises(KeyError, match=r"code_r1.*not loaded"):
        stacks.fire(["chat_r1"], train="code_r1")
    assert stacks.composition.firing == ("chat_r1",)


def test_gate_weights_of_the_wrong_width():
    stacks = tuner(stacked_model("llama", ["chat_r1"]))
    with (
        pytest.raises(ValueError, match="3 gate weights per row for the 2 domains"),
        stacks.gates(torch.ones(1, 3), ["chat", "code"]),
    ):
        pass


def test_bases_for_sites_that_are_not_there():
    stacks = tuner(stacked_model("llama", ["chat_r1"]))
    with pytest.raises(KeyError, match=r"layers\.9\.mlp"):
        stacks.confine(Basis({"model.layers.9.mlp.up_proj": orthonormal(64, 2, 0)}))


@pytest.mark.parametrize("other", [{"rank": 8}, {"experts": 4}, {"top_k": 1}, {"alpha": 8.0}])
def test_stacks_of_another_shape_on_the_same_base(other: dict):
    peft = stacked_model("llama", ["chat_r1"])
    with pytest.raises(ValueError, match=r"code round 1 has .*fused and must agree"):
        peft.add_adapter("code_r1", config("code_r1", **other))


def test_more_experts_fire_than_there_are():
    with pytest.raises(ValueError, match="top_k is 3 but a stack has 2 experts"):
        StackConfig(experts=2, top_k=3)


def test_nothing_attached_yet():
    base = LoadedBase(nn.Identity(), None, BaseRef("tiny", "0" * 64, "none"))  # type: ignore[arg-type]
    stacked = StackedBase(base, cache_dequantized=False)
    stacked.fire([])
    with pytest.raises(StackError, match="chat_r1"):
        stacked.fire(["chat_r1"])
    with pytest.raises(StackError, match="no stack"):
        _ = stacked.tuner
