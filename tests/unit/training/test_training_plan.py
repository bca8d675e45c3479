"""What a round asks of DeepSpeed and of the cluster, as pure functions."""

from __future__ import annotations

import pytest

from bs_cluster.config import CampaignConfig
from bs_cluster.config.schema import TrainingSection
from bs_cluster.errors import ClusterResourceError
from bs_cluster.training.launch import Plan, resource_plan
from bs_cluster.training.round import round_seed
from bs_cluster.training.zero import zero_config

DOMAINS = [{"name": "chat", "sources": [{"kind": "embedded", "name": "chat"}]}]


def campaign(**training) -> CampaignConfig:
    return CampaignConfig.model_validate({"campaign": "demo", "domains": DOMAINS, "training": training})


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stack_learns_in_fp32_under_every_stage(stage: int):
    settings = zero_config(TrainingSection(zero_stage=stage), 1, 100)  # type: ignore[arg-type]
    assert settings["zero_optimization"]["stage"] == stage
    assert not {"bf16", "fp16"} & settings.keys()
    assert settings["zero_allow_untested_optimizer"]


@pytest.mark.parametrize(("ranks", "passes"), [(1, 4), (2, 2), (4, 1)])
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


def test_a_plan_that_fits():
    config = campaign(num_workers=4, cpus_per_worker=2)
    assert resource_plan(config, {"CPU": 8.0, "GPU": 4.0}, autoscales=False) == Plan(4, 2.0, 1.0)
    without = campaign(num_workers=2, cpus_per_worker=1, use_gpu=False)
    assert resource_plan(without, {"CPU": 2.0}, autoscales=False) == Plan(2, 1.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "available", "message"),
    [
        ({"num_workers": 8}, {"CPU": 64, "GPU": 4}, "8 GPUs wanted by 8 training workers, the cluster has 4; lower"),
        ({"num_workers": 1}, {"CPU": 64}, "1 GPUs wanted.*has 0.*training.use_gpu=false"),
        ({"num_workers": 2, "cpus_per_worker": 3, "use_gpu": False}, {"CPU": 4}, "6 CPUs.*has 4.*cpus_per_worker"),
    ],
)
def test_what_does_not_fit_is_named_with_the_way_out(settings: dict, available: dict, message: str):
    with pytest.raises(ClusterResourceError, match=message):
        resource_plan(campaign(**settings), available, autoscales=False)
    assert resource_plan(campaign(**settings), available, autoscales=True).workers == settings["num_workers"]


def test_seeds_differ_between_stacks_and_campaigns_and_fit_in_31_bits():
    seeds = {round_seed(seed, name) for seed in (1, 2) for name in ("chat_r1", "chat_r2", "code_r1")}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert round_seed(1, "chat_r1") == round_seed(1, "chat_r1")
