"""The order of the domains, and what a campaign or a stack depends on."""

from __future__ import annotations

import json

import pytest

from bs_cluster.config import (
    CampaignConfig,
    campaign_identity,
    curriculum,
    domain_digest,
    effective_domain,
    identity_differences,
    parse_config,
)
from bs_cluster.errors import ConfigError

TEXT = """
campaign: tryout
domains:
  - {name: chat, sources: [{kind: embedded, name: chat}]}
  - {name: code, steps: 300, sources: [{kind: embedded, name: code}]}
"""


def ordered(**after: list[str]) -> CampaignConfig:
    source = {"kind": "embedded", "name": "chat"}
    domains = [{"name": name, "after": others, "sources": [source]} for name, others in after.items()]
    return CampaignConfig.model_validate({"campaign": "tryout", "domains": domains})


def test_curriculum_keeps_the_listed_order_where_it_may():
    assert curriculum(ordered(b=[], a=[], c=[])) == ("b", "a", "c")
    assert curriculum(ordered(b=["c"], a=[], c=[], d=[])) == ("a", "c", "b", "d")
    assert curriculum(ordered(d=["a"], c=["d"], b=[], a=[])) == ("b", "a", "d", "c")


def test_curriculum_refuses_a_cycle():
    with pytest.raises(ConfigError, match="a -> b -> a"):
        curriculum(ordered(a=["b"], b=["a"]))


def test_effective_domain_fills_from_training_what_the_domain_leaves_open():
    config = parse_config(TEXT, ["training.max_rounds=5", "training.learning_rate=1e-3"])
    code = effective_domain(config, "code")
    assert (code.steps, code.max_rounds, code.learning_rate) == (300, 5, 1e-3)
    assert effective_domain(config, "chat").steps == 400


def test_identity_survives_json_and_names_what_differs():
    old = json.loads(json.dumps(campaign_identity(parse_config(TEXT))))
    assert identity_differences(old, campaign_identity(parse_config(TEXT, ["training.steps=99"]))) == []
    changed = parse_config(TEXT, ["stack.rank=32", "data.template=plain", "null_space.space=both"])
    lines = identity_differences(old, campaign_identity(changed))
    assert [line.split(" ")[0] for line in lines] == ["data.template", "null_space.space", "stack.rank"]
    assert "stack.rank = 32: this campaign was begun with 16" in lines[2]


def test_what_a_random_base_is_made_of_belongs_to_the_campaign_and_says_nothing_of_another_base():
    random = parse_config(TEXT, ["base.model=random:llama"])
    other = parse_config(TEXT, ["base.model=random:llama", "base.random.seed=1"])
    (line,) = identity_differences(campaign_identity(random), campaign_identity(other))
    assert line.startswith("base.random.seed = 1: this campaign was begun with 0")
    assert domain_digest(random, "chat") != domain_digest(other, "chat")
    assert "random" not in campaign_identity(parse_config(TEXT))["base"]


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "stack.alpha=8",
        "base.quantization=none",
        "data.max_length=400",
        "training.steps=500",
        "training.global_batch=32",
        "training.b_lr_ratio=2",
        "null_space.energy=0.5",
        "domains.chat.sources.0.take=7",
        "domains.chat.learning_rate=1e-3",
    ],
)
def test_what_decides_training_changes_the_digest(override: str):
    assert domain_digest(parse_config(TEXT, [override]), "chat") != domain_digest(parse_config(TEXT), "chat")


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.num_workers=2"],
        ["training.per_device_batch=1"],
        ["training.threads_per_worker=1", "training.cpus_per_worker=2", "training.zero_stage=1"],
        ["training.use_gpu=false", "training.gradient_checkpointing=true", "training.max_failures=0"],
        ["training.checkpoint_every_s=0", "training.answer_timeout_s=5", "training.start_timeout_s=5"],
        ["base.cache_dequantized=true", "base.cache_dir=/elsewhere", "base.attention=eager"],
        ["sweep.evaluators=4", "router.network.hidden=8", "store.uri=s3://b/x", "registry.experiment=y"],
        ["domains.code.steps=10", "training.warmup_steps=10", "training.warmup_steps=40", "domains.code.steps=50"],
        ["domains.chat.steps=400"],
        ["domains.chat.sources.0.verify=number", "sweep.answer_rows=3"],
    ],
)
def test_where_and_how_it_is_computed_does_not(overrides: list[str]):
    assert domain_digest(parse_config(TEXT, overrides), "chat") == domain_digest(parse_config(TEXT), "chat")


def test_a_domain_that_sets_its_own_steps_does_not_depend_on_the_common_ones():
    assert domain_digest(parse_config(TEXT, ["training.steps=999"]), "code") == domain_digest(
        parse_config(TEXT), "code"
    )


def test_how_a_round_of_alignment_is_computed_does_not_change_the_digest_and_what_it_learns_does():
    source = {"kind": "embedded", "name": "chat"}

    def digest(**entry) -> str:
        rounds = [{"objective": "sft"}, {"objective": "grpo", "source": source, **entry}]
        domain = {"name": "chat", "sources": [source], "rounds": rounds}
        return domain_digest(CampaignConfig.model_validate({"campaign": "tryout", "domains": [domain]}), "chat")

    assert digest() == digest(per_device_batch=8, rollouts="evaluators")
    changes = [{"beta": 0.2}, {"group": 4}, {"steps": 7}, {"source": {**source, "take": 9}}]
    assert len({digest(), *(digest(**change) for change in changes)}) == 1 + len(changes)
