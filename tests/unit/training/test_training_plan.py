"""What a round asks of DeepSpeed, as pure functions."""

from __future__ import annotations

import pytest

from bs_cluster.config.schema import TrainingSection
from bs_cluster.training.round import round_seed
from bs_cluster.training.sharding import zero_config


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_stack_learns_in_fp32_under_every_stage(stage: int):
    settings = zero_config(TrainingSection(zero_stage=stage), 1, 100)  # type: ignore[arg-type]
    assert settings["zero_optimization"]["stage"] == min(stage, 2)  # 3 is for the base, which DeepSpeed never sees
    assert not {"bf16", "fp16"} & settings.keys()
    assert settings["zero_allow_untested_optimizer"]


@pytest.mark.parametrize(("ranks", "passes"), [(1, 4), (2, 2), (3, 2), (4, 1), (5, 1)])
def test_accumulation_follows_from_the_world_and_the_batch_does_not(ranks: int, passes: int):
    settings = zero_config(TrainingSection(global_batch=12, per_device_batch=3, max_grad_norm=0.5), ranks, 100)
    assert settings["gradient_accumulation_steps"] == passes
    assert settings["train_micro_batch_size_per_gpu"] == 3
    assert settings["gradient_clipping"] == 0.5


def test_the_buffer_for_gradients_is_no_larger_than_the_stack():
    def bucket(parameters: int) -> int:
        return zero_config(TrainingSection(), 1, parameters)["zero_optimization"]["reduce_bucket_size"]

    assert (bucket(1000), bucket(10**10)) == (1000, 500_000_000)


def test_offloading_pins_memory_only_beside_a_gpu():
    def offload(**settings) -> dict:
        return zero_config(TrainingSection(**settings), 1, 100)["zero_optimization"].get("offload_optimizer", {})

    assert offload() == {}
    assert offload(offload_optimizer=True) == {"device": "cpu", "pin_memory": True}
    assert offload(offload_optimizer=True, use_gpu=False) == {"device": "cpu", "pin_memory": False}


def test_seeds_differ_between_stacks_and_campaigns_and_fit_in_31_bits():
    seeds = {round_seed(seed, name) for seed in (1, 2) for name in ("chat_r1", "chat_r2", "code_r1")}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert round_seed(1, "chat_r1") == round_seed(1, "chat_r1")
