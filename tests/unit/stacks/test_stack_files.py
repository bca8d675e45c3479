"""A stack on disk is the stack: through PEFT, in a fresh process, beside others, in any order of loading."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from stack_kit import FACTORIES, add_stacks, config, orthonormal, random_ids, stacked_model, tuner
from tiny import save_tiny_base

from bs_cluster.adapter_format import PARTS, tensor_key
from bs_cluster.base.load import load_base
from bs_cluster.basis import Basis
from bs_cluster.config.schema import BaseSection
from bs_cluster.stacks import METHOD, StackConfig
from bs_cluster.stacks.adapter_files import write_adapter

STACKS = ["chat_r1", "code_r1", "math_r1"]
ROOT = Path(__file__).parents[3]


def written(peft, folder: Path) -> dict[str, Path]:
    """Every stack of ``peft`` in the project's own files."""
    for name, settings in tuner(peft).peft_config.items():
        write_adapter(folder / name, settings, tuner(peft).folded(name))
    return {name: folder / name for name in tuner(peft).peft_config}


@torch.no_grad()
def logits(peft, ids_BT: torch.Tensor) -> torch.Tensor:
    return peft.eval()(input_ids=ids_BT).logits


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits_in_every_order_of_loading(tmp_path):
    base = save_tiny_base(tmp_path / "base", "gemma3")
    peft = add_stacks(load_base(BaseSection(model=base), device="cpu").model, STACKS)
    ours = {name: str(folder) for name, folder in written(peft, tmp_path / "ours").items()}
    peft.save_pretrained(tmp_path / "theirs")
    theirs = {name: str(tmp_path / "theirs" / name) for name in STACKS}
    ids_BT = random_ids(2, 10)
    orders = [[(name, files[name])] for files in (ours, theirs) for name in STACKS]
    orders += [[(name, ours[name]) for name in order] for order in itertools.permutations(STACKS)]
    orders += [[(name, theirs[name]) for name in order] for order in (STACKS, STACKS[::-1])]
    settings = {"base": base, "ids": ids_BT.tolist(), "orders": orders, "out": str(tmp_path / "logits.pt")}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, str(Path(__file__).with_name("reload_stacks.py")), str(tmp_path / "settings.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for order, reloaded in zip(orders, torch.load(tmp_path / "logits.pt"), strict=True):
        tuner(peft).fire([name for name, _ in order])
        assert torch.equal(reloaded, logits(peft, ids_BT)), order


@pytest.mark.parametrize(("kind", "low_memory"), [("gemma3", False), ("llama", False), ("llama", True)])
def test_a_stack_loaded_after_the_block_was_packed_is_active(tmp_path, kind: str, low_memory: bool):
    folders = written(stacked_model(kind, STACKS), tmp_path)
    peft = PeftModel.from_pretrained(FACTORIES[kind](), folders["chat_r1"], adapter_name="chat_r1")
    tuner(peft).fire(["chat_r1"])
    ids_BT = random_ids(1, 8)
    alone = logits(peft, ids_BT)  # packs
    seen = [alone]
    for last in (["chat_r1", "code_r1"], STACKS):
        peft.load_adapter(folders[last[-1]], adapter_name=last[-1], low_cpu_mem_usage=low_memory)
        tuner(peft).fire(last)
        assert torch.equal(logits(peft, ids_BT), logits(stacked_copy(kind, last), ids_BT))
        assert not any(torch.equal(logits(peft, ids_BT), other) for other in seen)
        seen.append(logits(peft, ids_BT))


def stacked_copy(kind: str, names: list[str]):
    return stacked_model(kind, names).eval()


@pytest.mark.parametrize("assign", [False, True])
def test_new_values_loaded_into_a_packed_stack_take_effect(assign: bool):
    peft = stacked_model("llama", STACKS)
    ids_BT = random_ids(1, 8)
    before = logits(peft, ids_BT)
    state = {key: value.clone() for key, value in peft.state_dict().items()}
    for site in tuner(peft).sites:
        site.stack_B["code_r1"].data.mul_(3)  # a view of the block
    changed = logits(peft, ids_BT)
    peft.load_state_dict(state, assign=assign)
    assert not torch.equal(changed, before)
    assert torch.equal(logits(peft, ids_BT), before)


def test_files_hold_one_fp32_tensor_per_part_and_site_and_always_the_same_bytes(tmp_path):
    peft = stacked_model("gemma3", ["chat_r1"])
    one, two = written(peft, tmp_path / "one")["chat_r1"], written(peft, tmp_path / "two")["chat_r1"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    tensors = load_file(one / "adapter_model.safetensors")
    paths = tuner(peft).site_names()
    assert set(tensors) == {tensor_key(path, part) for path in paths for part in PARTS}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    settings = PeftConfig.from_pretrained(one)
    assert isinstance(settings, StackConfig)
    assert (settings.peft_type, settings.domain, settings.round, settings.position) == (METHOD, "chat", 1, 0)
    assert (settings.rank, settings.experts, settings.top_k, settings.scale) == (4, 3, 2, 2.0)
    assert settings.inference_mode


def test_what_peft_loads_is_frozen_and_what_it_adds_learns(tmp_path):
    folder = written(stacked_model("llama", ["chat_r1"]), tmp_path)["chat_r1"]
    loaded = PeftModel.from_pretrained(FACTORIES["llama"](), folder, adapter_name="chat_r1")
    assert not any(p.requires_grad for p in loaded.parameters())
    assert tuner(loaded).composition.firing == ("chat_r1",)

    trainable = PeftModel.from_pretrained(FACTORIES["llama"](), folder, adapter_name="chat_r1", is_trainable=True)
    assert tuner(trainable).composition.train == "chat_r1"
    assert learning_names(trainable) == {"chat_r1"}

    fresh = get_peft_model(FACTORIES["llama"](), config("chat_r1"), adapter_name="chat_r1")
    assert tuner(fresh).composition.train == "chat_r1"
    fresh.add_adapter("code_r1", config("code_r1"))
    assert learning_names(fresh) == {"chat_r1"}
    fresh.set_adapter("code_r1")
    assert learning_names(fresh) == {"code_r1"}


def learning_names(peft) -> set[str]:
    return {name.rsplit(".", 1)[1] for name, p in peft.named_parameters() if p.requires_grad}


def test_adding_a_stack_beside_loaded_ones_leaves_them_frozen(tmp_path):
    """The order of use of a round: parents loaded, the new stack added, ``fire(parents, train=new)``."""
    folders = written(stacked_model("llama", STACKS), tmp_path)
    peft = PeftModel.from_pretrained(FACTORIES["llama"](), folders["chat_r1"], adapter_name="chat_r1")
    peft.load_adapter(folders["code_r1"], adapter_name="code_r1")
    ids_BT = random_ids(1, 8)
    tuner(peft).fire(["chat_r1", "code_r1"])
    before = logits(peft, ids_BT)
    peft.add_adapter("math_r1", config("math_r1"))
    tuner(peft).fire(["chat_r1", "code_r1"], train="math_r1")
    assert learning_names(peft) == {"math_r1"}
    torch.testing.assert_close(logits(peft, ids_BT), before)  # B starts at zero; one product sums all stacks


def test_peft_can_switch_stacks_off_and_on_again():
    """TRL's preference trainers take the reference model this way."""
    peft = stacked_model("llama", ["chat_r1", "math_r1"])
    tuner(peft).fire(["chat_r1"], train="math_r1")
    ids_BT = random_ids(1, 8)
    on = logits(peft, ids_BT)
    with peft.disable_adapter(), torch.no_grad():
        assert torch.equal(peft(input_ids=ids_BT).logits, FACTORIES["llama"]()(input_ids=ids_BT).logits)
    assert torch.equal(logits(peft, ids_BT), on)
    assert learning_names(peft) == {"math_r1"}
    assert tuner(peft).composition.train == "math_r1"


def test_a_deleted_stack_is_gone_and_the_others_stay():
    peft, ids_BT = stacked_model("llama", STACKS), random_ids(1, 8)
    everything = logits(peft, ids_BT)
    peft.delete_adapter("code_r1")
    rest = logits(peft, ids_BT)
    assert not torch.equal(rest, everything)
    assert torch.equal(rest, logits(stacked_model("llama", ["chat_r1", "math_r1"]), ids_BT))
    assert not any("code_r1" in name for name, _ in peft.named_parameters())
    tuner(peft).fire(["chat_r1"], train="math_r1")
    peft.delete_adapter("chat_r1")
    assert tuner(peft).composition.train == "math_r1"
    assert learning_names(peft) == {"math_r1"}


def test_the_only_stack_can_be_deleted_and_another_added():
    """A domain's first round that is not kept: what is left is the base, bit for bit, free for the next."""
    peft, ids_BT = stacked_model("llama", ["chat_r1"]), random_ids(1, 8)
    stacks = tuner(peft)
    stacks.fire([], train="chat_r1")
    stacks.confine(Basis({stacks.site_names()[0]: orthonormal(stacks.sites[0].out_features, 5, 1, torch.float32)}))
    peft.delete_adapter("chat_r1")
    with torch.no_grad():
        assert torch.equal(stacks(input_ids=ids_BT).logits, FACTORIES["llama"]()(input_ids=ids_BT).logits)
    assert stacks.composition.train is None
    assert stacks.sites[0].basis_OK is None
    peft.add_adapter("code_r1", config("code_r1"))
    stacks.fire([], train="code_r1")
    assert learning_names(peft) == {"code_r1"}


def test_a_frozen_stack_is_what_freezing_returned():
    peft, ids_BT = stacked_model("llama", STACKS), random_ids(1, 8)
    stacks = tuner(peft)
    stacks.fire(["chat_r1"], train="math_r1")
    learned = logits(peft, ids_BT)
    tensors = stacks.freeze("math_r1")
    assert stacks.composition.firing == ("chat_r1",)
    assert stacks.composition.train is None
    assert learning_names(peft) == set()
    stacks.fire(["chat_r1", "math_r1"])
    torch.testing.assert_close(logits(peft, ids_BT), learned)
    again = stacks.folded("math_r1")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_a_folded_file_needs_no_basis(tmp_path):
    peft = stacked_model("llama", ["chat_r1"])
    stacks, ids_BT = tuner(peft), random_ids(1, 8)
    output, inputs = {}, {}
    for path, site in zip(stacks.site_names(), stacks.sites, strict=True):
        output[path] = orthonormal(site.out_features, 5, 1, torch.float32)
        inputs[path] = orthonormal(site.in_features, 6, 2, torch.float32)
    stacks.fire([], train="chat_r1")
    stacks.confine(Basis(output, inputs))
    confined = logits(peft, ids_BT)
    folder = written(peft, tmp_path)["chat_r1"]
    again = PeftModel.from_pretrained(FACTORIES["llama"](), folder, adapter_name="chat_r1")
    torch.testing.assert_close(logits(again, ids_BT), confined, rtol=1e-5, atol=1e-5)


def test_two_stacks_share_one_block_without_a_second_copy():
    peft = stacked_model("llama", STACKS)
    logits(peft, random_ids(1, 4))
    for site in tuner(peft).sites:
        block = site.packed
        assert block.names == tuple(STACKS)
        for tensor, part in ((block.read_XI, "stack_A"), (block.write_MO, "stack_B"), (block.read_XI, "stack_router")):
            owners = {getattr(site, part)[name].untyped_storage().data_ptr() for name in STACKS}
            assert owners == {tensor.untyped_storage().data_ptr()}


def test_the_order_in_the_block_is_the_curriculums_not_the_loaders():
    peft = stacked_model("llama", ["math_r1", "chat_r2", "code_r1", "chat_r1"])
    assert tuner(peft).composition.firing == ("chat_r1", "chat_r2", "code_r1", "math_r1")
