"""All rounds of a domain in one adapter are those rounds firing together, in every place where stacks stand by name."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from stack_kit import FACTORIES, config, random_ids, stacked_model, tuner

from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.stacks.whole_domain import joined_config, joined_tensors

ROUNDS = ["chat_r1", "chat_r2", "chat_r3"]
IDS = random_ids(2, 9)


@torch.no_grad()
def logits(peft, ids_BT: torch.Tensor = IDS) -> torch.Tensor:
    return peft.eval()(input_ids=ids_BT).logits


@pytest.fixture
def apart():
    """Three rounds of one domain and two of another, each its own adapter."""
    return stacked_model("llama", [*ROUNDS, "math_r1", "math_r2"])


def joined(apart, names: list[str], folder):
    """The named rounds as one adapter on disk."""
    stacks = tuner(apart)
    configs = [stacks.peft_config[name] for name in names]
    write_adapter(folder, joined_config(configs), joined_tensors([stacks.folded(name) for name in names]))
    return folder


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_rounds_of_a_domain_are_one_adapter(apart, tmp_path, count):
    tuner(apart).fire(ROUNDS[:count])
    whole = PeftModel.from_pretrained(FACTORIES["llama"](), joined(apart, ROUNDS[:count], tmp_path))
    assert torch.equal(logits(whole), logits(apart))
    assert tuner(whole).peft_config["default"].rounds == count


def test_gate_weights_of_a_domain_weigh_all_its_rounds(apart, tmp_path):
    whole = PeftModel.from_pretrained(FACTORIES["llama"](), joined(apart, ["math_r1", "math_r2"], tmp_path / "math"))
    whole.load_adapter(joined(apart, ROUNDS, tmp_path / "chat"), "chat")
    tuner(whole).fire(["default", "chat"])  # the block's order is the curriculum's, whatever was loaded first
    assert torch.equal(logits(whole), logits(apart))
    for weights in ([[0.25, 1.0], [1.0, 0.0]], [[0.5, 0.0], [0.0, 0.0]], [[0.0, 0.7], [0.0, 1.0]]):
        weights_BD = torch.tensor(weights)
        with tuner(whole).gates(weights_BD, ("math", "chat")), tuner(apart).gates(weights_BD, ("math", "chat")):
            assert torch.equal(logits(whole), logits(apart))


def test_it_is_saved_and_loaded_again_after_it_was_packed(apart, tmp_path):
    whole = PeftModel.from_pretrained(FACTORIES["llama"](), joined(apart, ROUNDS, tmp_path / "first"))
    wanted = logits(whole)
    whole.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(FACTORIES["llama"](), tmp_path / "again")), wanted)


def test_its_rounds_are_frozen(apart, tmp_path):
    folder = joined(apart, ROUNDS, tmp_path)
    whole = PeftModel.from_pretrained(FACTORIES["llama"](), folder)
    with pytest.raises(ValueError, match="'default' holds 3 rounds, which are frozen; train another"):
        tuner(whole).fire([], train="default")
    with pytest.raises(ValueError, match="several rounds in one adapter"), tuner(whole).measuring(["default"]):
        pass
    whole.add_adapter("math_r1", config("math_r1"))
    tuner(whole).fire(["default"], train="math_r1")
    tuner(apart).fire(ROUNDS)
    torch.testing.assert_close(logits(whole), logits(apart))  # an untrained stack beside it changes nothing


def test_a_domain_that_trained_anew_counts_on():
    whole = joined_config([config("chat_r3"), config("chat_r4")])
    assert (whole.rounds, whole.round) == (2, 4)


def test_only_rounds_of_one_domain_one_after_another_are_a_whole():
    for names in (["chat_r2", "chat_r1"], ["chat_r1", "chat_r3"], ["chat_r1", "math_r2"]):
        with pytest.raises(ValueError, match="is wanted"):
            joined_config([config(name) for name in names])
    with pytest.raises(ValueError, match="is wanted"):
        joined_config([config("chat_r1", rank=2), config("chat_r2")])
    with pytest.raises(ValueError, match="cannot be"):
        config("chat_r1", rounds=2)


def test_one_that_was_loaded_beside_others_is_said_to_be_off_once(apart, tmp_path, recwarn):
    whole = PeftModel.from_pretrained(FACTORIES["llama"](), joined(apart, ROUNDS, tmp_path / "chat"))
    whole.load_adapter(joined(apart, ["math_r1"], tmp_path / "math"), "math")
    recwarn.clear()
    alone = logits(whole)
    logits(whole)
    assert ["math was loaded and does not fire" in str(warning.message) for warning in recwarn] == [True]
    tuner(apart).fire(ROUNDS)
    assert torch.equal(alone, logits(apart))


def test_who_decides_what_fires_is_told_nothing(apart, tmp_path, recwarn):
    whole = PeftModel.from_pretrained(FACTORIES["llama"](), joined(apart, ROUNDS, tmp_path / "chat"))
    whole.load_adapter(joined(apart, ["math_r1"], tmp_path / "math"), "math")
    whole.set_adapter("default")
    recwarn.clear()
    logits(whole)
    assert list(recwarn) == []
