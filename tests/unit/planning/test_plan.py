"""A plan says what the code does: parameters, room, work and bytes are those of the functions that train."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_base
from tiny_alignment import aligned, tiny_round, write_pairs
from tiny_campaign import campaign, write_inputs

from bs_cluster.base.load import load_base
from bs_cluster.base.prepare import built_folder
from bs_cluster.config import load_config, to_yaml
from bs_cluster.config.schema import BaseSection, NullSpaceSection, TrainingSection
from bs_cluster.errors import BaseModelError, UsageError
from bs_cluster.inference.stacked import StackedBase, stack_config
from bs_cluster.planning.fit import with_settings
from bs_cluster.planning.hardware import SHIPPED, Hardware, hardware
from bs_cluster.planning.known_models import KNOWN
from bs_cluster.planning.live_bytes import LiveBytes, held_bytes
from bs_cluster.planning.memory import sharded
from bs_cluster.planning.plan import Planner, make_plan, with_domains
from bs_cluster.planning.room import basis_bytes, claims, room
from bs_cluster.planning.skeleton import skeleton, weights_of
from bs_cluster.planning.work import sweep_work, training_work
from bs_cluster.planning.worker import Batch, ShapedWorker
from bs_cluster.records import StackId
from bs_cluster.stacks.moments import Moments

ROOT = Path(__file__).resolve().parents[3]
GEMMA = str(ROOT / "jobs/configs/gemma3_12b.yaml")


@pytest.fixture
def tiny(tmp_path):
    """A campaign of two domains on a tiny base of six layers."""
    save_tiny_base(tmp_path / "base", "gemma3", layers=6)
    return campaign(tmp_path, tmp_path / "store", ("aa", "bb"), base={"cache_dequantized": False})


# Published counts; see known_models.py.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        # Of the text model 11,765,788,416, and 64 more words of 3,840 numbers.
        ("google/gemma-3-12b-it", 11_765_788_416 + 64 * 3840),
    ],
)
def test_a_known_model_has_the_parameters_that_its_makers_say(name, parameters):
    model = skeleton(BaseSection(model=name, quantization="none")).model
    counted = sum(
        parameter.numel()
        for path, parameter in model.named_parameters()
        if "vision_tower" not in path and "multi_modal_projector" not in path
    )
    assert counted == parameters


@pytest.mark.parametrize("name", ["embedded:gemma3-270m", "embedded:smollm2-135m"])
def test_an_embedded_base_is_known_as_it_is_built(name, monkeypatch):
    base = BaseSection(model=name)
    folder = built_folder(base)
    if folder is None or not folder.is_dir():
        pytest.skip(f"{name} is not built on this machine")
    known = skeleton(base).model
    monkeypatch.delitem(KNOWN, name)
    built = skeleton(BaseSection(model=str(folder))).model
    assert held_bytes(weights_of(known)) == held_bytes(weights_of(built))
    assert {path: p.shape for path, p in known.named_parameters()} == {
        path: p.shape for path, p in built.named_parameters()
    }


def test_a_base_that_nobody_knows_is_told():
    with pytest.raises(BaseModelError, match="no such folder"):
        skeleton(BaseSection(model="./nowhere"))


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("kind", ["gemma3", "llama"])
def test_a_skeleton_weighs_what_the_loaded_base_weighs(tmp_path, kind, quantization):
    base = BaseSection(model=save_tiny_base(tmp_path, kind), quantization=quantization)
    real, shaped = load_base(base, device="cpu").model, skeleton(base).model
    assert held_bytes(weights_of(shaped)) == held_bytes(weights_of(real))
    assert {path: p.shape for path, p in shaped.named_parameters()} == {
        path: p.shape for path, p in real.named_parameters()
    }


def test_live_bytes_count_what_lives_and_what_products_cost():
    with LiveBytes() as live:
        x = torch.empty(100, 50, device="meta")
        y = x @ torch.empty(50, 10, device="meta")
        del x
    assert live.now == y.nbytes
    assert live.peak == 4 * (100 * 50 + 50 * 10 + 100 * 10)
    assert live.flops == 2 * 100 * 50 * 10


def test_a_pass_of_few_layers_stands_for_one_of_all(tiny):
    """What a pass holds and multiplies is a straight line in the layers."""
    worker = ShapedWorker(tiny, gpu=False)
    whole = ShapedWorker(tiny, gpu=False, layers=6)
    assert worker.cuts
    assert not whole.cuts
    for shaped in (worker, whole):
        shaped.set_stacks(3, 3)
    batch = Batch(4, 32, 124)
    for checkpointing in (False, True):
        of_cuts, of_all = (shaped.training_pass(batch, checkpointing, False) for shaped in (worker, whole))
        assert of_cuts.flops == of_all.flops
        assert of_cuts.peak == pytest.approx(of_all.peak, rel=0.01)


def test_a_stack_weighs_what_the_code_makes_of_it(tiny):
    stacked = StackedBase.load(tiny.base, "cpu")
    name = stacked.begin(stack_config(tiny.stack, StackId("aa", 1), 0), seed=0)
    stacked.fire([], train=name)
    tensors = stacked.tuner.freeze(name)
    worker = ShapedWorker(tiny, gpu=False)
    assert worker.stack_parameters == sum(tensor.numel() for tensor in tensors.values())
    worker.set_stacks(1, 1, learns=False)
    packed = [site.pack(torch.bfloat16) for site in stacked.tuner.sites]
    assert worker.packed_bytes == held_bytes([(block.read_XI, block.write_MO) for block in packed])


def test_room_runs_out_where_the_arithmetic_of_claims_says():
    widths = {"model.layers.0.self_attn.k_proj": (3840, 2048), "model.layers.0.mlp.up_proj": (3840, 15360)}
    greedy = NullSpaceSection(space="output", max_rank=64, max_share=1.0)
    found = room(claims(widths, greedy, 512, 100))
    assert found.full == 2048 // 64 + 1  # thirty-two domains claim all of it
    assert "k_proj" in found.tightest
    shared = room(claims(widths, NullSpaceSection(space="output", max_rank=64), 512, 50))
    assert shared.full is None
    assert shared.scarce is not None
    last = list(claims(widths, NullSpaceSection(enabled=False), 512, 3))[-1]
    assert basis_bytes(last) == 0


def test_zero_shards_what_its_stage_says():
    parameters, ranks = 1_000_000, 4
    of = {
        stage: sharded(TrainingSection(zero_stage=stage, global_batch=64), ranks, parameters, gpu=True)
        for stage in (0, 1, 2, 3)
    }
    assert of[0].device["optimizer state"] == 8 * parameters
    assert of[2].device["optimizer state"] == 8 * parameters // ranks
    assert of[1].device["gradients"] == 4 * parameters  # four passes: they accumulate whole
    assert of[2].device["gradients"] == 4 * parameters // ranks
    assert of[3] == of[2]  # of what learns; the base is in parts beside it
    offloaded = sharded(TrainingSection(offload_optimizer=True), ranks, parameters, gpu=True)
    assert "optimizer state" in offloaded.host
    assert "optimizer state" not in offloaded.device


def parts_of(footprint) -> dict[str, int]:
    return {part.name: part.bytes for part in (*footprint.parts, *footprint.moments, *footprint.host)}


def test_in_an_isolated_context_other_domains_stacks_wait_in_the_host(tiny):
    """The stacks on the device are the domain's own, however many domains there are."""
    gpu = {"use_gpu": True, "context": "isolated"}
    alone = tiny.model_copy(update={"training": tiny.training.model_copy(update=gpu)})
    planner = Planner(alone, hardware("8xA100-80"))
    few, many = (parts_of(planner.worker_of(with_domains(alone, count))) for count in (2, 9))
    assert few["frozen stacks"] == many["frozen stacks"]
    assert many["parked stacks"] == pytest.approx(8 * few["parked stacks"], rel=0.01)
    assert many["closing, all stacks on"] > few.get("closing, all stacks on", 0)
    beside = with_domains(tiny.model_copy(update={"training": tiny.training.model_copy(update={"use_gpu": True})}), 9)
    assert parts_of(planner.worker_of(beside))["frozen stacks"] > 8 * many["frozen stacks"]


def test_workers_share_the_base_out_under_zero_3(tiny):
    planner = Planner(tiny, hardware("8xA100-80"))
    base = {
        stage: parts_of(planner.worker_of(with_settings(tiny, {"training.zero_stage": stage})))["base"]
        for stage in (2, 3)
    }
    spared = base[2] - base[3]
    assert spared == pytest.approx(planner.shaped.shared_out(2) / 2, rel=0.02)


def test_rounds_of_alignment_and_answers_are_planned(tiny, tmp_path):
    write_pairs(write_inputs(tmp_path))
    long = tiny_round(tmp_path, "grpo", answer_tokens=512, per_device_batch=8)
    tiny = tiny.model_copy(update={"sweep": tiny.sweep.model_copy(update={"answer_rows": 0})})
    planner = Planner(tiny, hardware("8xA100-80"))
    plain = planner.worker_of(tiny)
    by_workers = planner.worker_of(aligned(tiny, {"bb": long}))
    assert by_workers.peak > plain.peak
    assert {"forward and backward, grpo", "answering"} <= parts_of(by_workers).keys()
    by_others = aligned(tiny, {"bb": {**long, "rollouts": "evaluators"}})
    assert "answering" not in parts_of(planner.worker_of(by_others))
    assert "answering" not in parts_of(planner.evaluator_of(tiny))
    held, _ = planner.shaped.cache_of_answers(32, tiny.data.max_prompt_length + 512)
    assert parts_of(planner.evaluator_of(by_others))["answering"] >= held


def test_keys_and_values_are_those_that_the_model_makes(tiny):
    """Of two rows of twenty tokens; a layer with a window keeps no more."""
    model = load_base(tiny.base, device="cpu").model
    with torch.no_grad():
        cache = model(input_ids=torch.full((2, 20), 5), use_cache=True).past_key_values
    made = held_bytes([(layer.keys, layer.values) for layer in cache.layers])
    assert ShapedWorker(tiny, gpu=False).cache_of_answers(2, 20)[0] == pytest.approx(made, rel=0.05)


def test_work_is_counted_as_it_will_be_done():
    config = load_config(GEMMA)
    training, sweep = training_work(config, 512), sweep_work(config, 512)
    assert training.rounds == 10
    assert training.steps == 4 * 2 * 500 + 2 * 600
    assert training.tokens == training.steps * 16 * 512
    assert sweep.search == "exhaustive"
    assert sweep.outcomes == 5 * 200 * 2**5
    assert sweep.active == pytest.approx(2.5)


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_a_setting_that_was_tried(tiny):
    node = hardware("1xL4")
    gpu = tiny.model_copy(update={"training": tiny.training.model_copy(update={"use_gpu": True, "num_workers": 1})})
    plan = make_plan(gpu, node)
    assert plan.misfits == ()
    # Room for everything but the activations of a batch of four.
    small = (plan.worker.peak - plan.worker.largest.bytes // 3) / 1e9
    tight = Hardware(
        dataclasses.replace(node.node, memory_gb=small),
        dataclasses.replace(node.assumed, reserved_gb=0, fragmentation=0),
    )
    told = make_plan(gpu, tight)
    misfit = told.misfits[0]
    assert misfit.what == "a training worker"
    assert misfit.wants > misfit.has
    assert misfit.remedies[-1].fits
    assert "training.gradient_checkpointing=true" in misfit.remedies[-1].settings


@pytest.mark.slow
def test_plan_prints_one_json_value_and_nothing_else(tiny, tmp_path):
    for name in ("aa", "bb"):
        (tmp_path / f"{name}.jsonl").touch()
    file = tmp_path / "tiny.yaml"
    file.write_text(to_yaml(tiny))
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "bs_cluster.cli", "plan", "--config", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    plan = json.loads(done.stdout)
    assert plan["campaign"] == "tiny"
    assert [grown["domains"] for grown in plan["growth"]] == [2, 10, 20, 50]


def test_hardware_is_the_users_to_edit(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(SHIPPED.read_text().replace("usd_hour: 55", "usd_hour: 30"))
    assert hardware("8xH100", str(own)).node.usd_hour == 30
    with pytest.raises(UsageError, match="8xH10: no such node; did you mean 8xH100"):
        hardware("8xH10")
    own.write_text(SHIPPED.read_text().replace("usd_hour: 55", "price: 30"))
    with pytest.raises(UsageError, match="wants the keys"):
        hardware("8xH100", str(own))


def test_a_moment_of_a_stack_is_what_moments_hold():
    """The closing's accumulators are made of shapes too."""
    held = Moments.empty(["a"], 64, omega_IQ=torch.empty(640, 80, device="meta"), device="meta")
    assert held_bytes(held.tensors()) == 64 * 64 * 8 + 8 + 640 * 80 * 4
