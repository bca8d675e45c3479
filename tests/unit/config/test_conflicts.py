"""Combinations of settings that cannot work."""

from __future__ import annotations

import pytest

from bs_cluster.config import CampaignConfig, parse_config, problems, yaml12
from bs_cluster.errors import ConfigError

SOURCE = {"kind": "embedded", "name": "chat"}


def campaign(*domains: dict, **sections: dict) -> CampaignConfig:
    listed = domains or ({"name": "chat"}, {"name": "reasoning"})
    filled = [{"sources": [SOURCE], **domain} for domain in listed]
    return CampaignConfig.model_validate({"campaign": "tryout", "domains": filled, **sections})


def random_base(**sizes: int) -> dict:
    return {"base": {"model": "random:llama", "random": sizes}}


def test_a_random_base_of_gpt2s_shape_or_unpacked_of_any_width_has_no_conflict():
    assert problems(campaign(**random_base())) == []
    small = random_base(hidden=36, heads=2, intermediate=50)
    small["base"]["quantization"] = "none"
    assert problems(campaign(**small)) == []


def test_the_defaults_have_no_conflict():
    assert problems(campaign()) == []


@pytest.mark.parametrize(
    ("sections", "key", "way_out"),
    [
        ({"stack": {"top_k": 5}}, "stack.top_k = 5", "stack.experts = 4"),
        ({"stack": {"target_modules": ["q_proj", "q_proj"]}}, "stack.target_modules", "q_proj is listed twice"),
        ({"data": {"max_length": 64, "max_prompt_length": 64}}, "data.max_prompt_length = 64", "no room"),
        ({"training": {"steps": 30}}, "training.warmup_steps = 40", "training.steps = 30"),
        ({"training": {"optimizer": "adam"}}, 'training.optimizer = "adam"', "did you mean adamw?; there are adamw"),
        ({"training": {"optimizer": "lion"}}, 'training.optimizer = "lion"', "there are adamw"),
        ({"data": {"validation_rows": 3}}, "data.validation_rows = 3", "4 or more"),
        ({"training": {"global_batch": 18}}, "training.global_batch = 18", "a multiple of 4"),
        ({"training": {"num_workers": 2, "min_workers": 3}}, "training.min_workers = 3", "training.num_workers = 2"),
        ({"training": {"num_workers": 3}}, "training.global_batch = 16", "a multiple of 12"),
        ({"training": {"zero_stage": 0, "offload_optimizer": True}}, "training.offload_optimizer", "zero_stage"),
        (
            {"training": {"zero_stage": 3}, "base": {"cache_dequantized": True}},
            "training.zero_stage",
            "base.cache_dequantized",
        ),
        (
            {"training": {"use_gpu": False}, "base": {"attention": "flash_attention_2"}},
            "base.attention",
            "training.use_gpu is false",
        ),
        (
            {"base": {"attention": "flash_attention_2", "compute_dtype": "float32"}},
            "base.attention",
            "16 bits",
        ),
        ({"base": {"model": "embedded:gemma-270m"}}, "base.model", "did you mean gemma3-270m?"),
        ({"base": {"model": "embeded:gemma3-270m"}}, "base.model", "did you mean embedded?"),
        (
            {"base": {"model": "random:lama"}},
            'base.model = "random:lama"',
            "did you mean llama?; there are gemma3, llama",
        ),
        ({"base": {"model": "random:"}}, "base.model", "there are gemma3, llama"),
        ({"base": {"model": "randm:llama"}}, "base.model", "did you mean random?"),
        ({"base": {"model": "random:llama", "revision": "main"}}, "base.revision", "remove it"),
        ({"base": {"random": {"layers": 4}}}, 'base.random = {"layers": 4}', "take random:llama"),
        ({"base": {"model": "random:llama"}, "data": {"template": "chat"}}, "data.template", "alpaca or plain"),
        (random_base(hidden=256), "base.random.hidden = 256", "a multiple of 24"),
        (random_base(hidden=36), "base.random.hidden = 36", "a multiple of 24"),  # an odd width has no rotary halves
        (random_base(kv_heads=5), "base.random.kv_heads = 5", "take a divisor"),
        (random_base(hidden=96, heads=2), "base.random.hidden = 96", "NF4 packs 64 at a time"),
        (random_base(intermediate=100), "base.random.intermediate = 100", "NF4 packs 64 at a time"),
        (random_base(hidden=128, heads=4, kv_heads=1), "base.random.kv_heads = 1", "a width of 32"),
        (random_base(context=500), "base.random.context = 500", "data.max_length = 512 is longer"),
        ({"stack": {"target_modules": ["q_prj"]}}, "stack.target_modules", "did you mean q_proj?"),
        ({"registry": {"tracking_uri": "sqlite:///mlflow.db"}}, "registry.tracking_uri", "sqlite:////"),
        ({"base": {"revision": "main"}}, "base.revision", "remove it"),
        ({"base": {"quantization": "none", "cache_dequantized": True}}, "base.cache_dequantized", "remove it"),
        ({"data": {"template": "chat"}}, "data.template", "no chat template"),
        (
            {"sweep": {"foreign": [{"name": "x", "source": {"kind": "embedded", "name": "manul"}}]}},
            "sweep.foreign.0.source.name",
            "did you mean manual?",
        ),
        (
            {"sweep": {"mixed": [{"name": "x", "source": {"kind": "embedded", "name": "doses"}}] * 2}},
            "sweep.mixed",
            "x is listed twice",
        ),
        ({"router": {"targets": {"boost_domain": "reson"}}}, "router.targets.boost_domain", "did you mean reasoning?"),
    ],
)
def test_settings_that_exclude_each_other(sections: dict, key: str, way_out: str):
    (line,) = problems(campaign(**sections))
    assert line.startswith(key)
    assert way_out in line


def test_a_domain_that_overrides_steps_is_what_counts():
    assert problems(campaign({"name": "chat", "steps": 100}, training={"steps": 30})) == []
    (line,) = problems(campaign({"name": "chat", "steps": 30}, training={"steps": 100}))
    assert "domains.chat.steps = 30" in line


def test_the_default_boost_waits_for_its_domain():
    assert problems(campaign({"name": "law"})) == []


def test_order_problems():
    lines = problems(
        campaign(
            {"name": "chat", "after": ["math"]},
            {"name": "code", "after": ["chat", "cod"]},
            {"name": "math", "after": ["code"]},
            {"name": "law", "after": ["law"]},
        )
    )
    assert len(lines) == 3
    assert "did you mean code?" in lines[0]
    assert "cannot come after itself" in lines[1]
    assert "chat -> math -> code -> chat" in lines[2]


def test_two_separate_cycles_are_both_printed():
    names = {"a": "b", "b": "a", "c": "d", "d": "c", "e": "a"}
    lines = problems(campaign(*({"name": name, "after": [other]} for name, other in names.items())))
    assert ["a -> b -> a" in lines[0], "c -> d -> c" in lines[1], len(lines)] == [True, True, 2]


def test_a_name_listed_twice():
    (line,) = problems(campaign({"name": "chat"}, {"name": "chat"}))
    assert "chat is listed twice" in line


@pytest.mark.parametrize(
    ("source", "field", "way_out"),
    [
        ({"kind": "jsonl"}, "path", "a source of kind jsonl needs it"),
        ({"kind": "parquet"}, "path", "needs it"),
        ({"kind": "hub"}, "name", "needs it"),
        ({"kind": "embedded"}, "name", "needs it"),
        ({"kind": "reasoning_gym"}, "tasks", "needs it"),
        ({"kind": "reasoning_gym", "tasks": []}, "tasks", "should not be empty"),
        ({"kind": "jsonl", "path": "a", "name": "b"}, "name", "means nothing to a source of kind jsonl"),
        ({"kind": "hub", "name": "a", "path": "b"}, "path", "means nothing"),
        ({"kind": "embedded", "name": "chat", "split": "test"}, "split", "means nothing"),
        ({"kind": "embedded", "name": "chat", "format": "alpaca"}, "format", "means nothing"),
        ({"kind": "jsonl", "path": "a", "tasks": ["x"]}, "tasks", "means nothing"),
        ({"kind": "parquet", "path": "a", "config": "x"}, "config", "means nothing"),
        ({"kind": "parquet", "path": "a", "frmat": "x"}, "frmat", "did you mean format?"),
        ({"kind": "jsonl", "path": "a", "format": "alpacca"}, "format", "did you mean alpaca?"),
        ({"kind": "jsonl", "path": "a", "verify": "exakt"}, "verify", "did you mean exact?"),
        ({"kind": "jsonl", "path": "a", "verify": "judge.py"}, "verify", "package.module:function"),
        ({"kind": "jsonl", "path": "a", "verify": "nowhere:judge"}, "verify", "No module named 'nowhere'"),
        ({"kind": "jsonl", "path": "a", "verify": "math:pi"}, "verify", "a function of prompt"),
        ({"kind": "jsonl", "path": "a", "verify": "tests"}, "tests", "set both or neither"),
        ({"kind": "jsonl", "path": "a", "tests": "test"}, "tests", "set both or neither"),
        ({"kind": "embedded", "name": "caht"}, "name", "did you mean chat?"),
        ({"kind": "parqet", "path": "a"}, "kind", "did you mean parquet?"),
        ({"path": "a"}, "kind", "there are embedded, hub, jsonl, parquet, reasoning_gym"),
    ],
)
def test_a_source_has_its_kinds_fields_and_no_others(source: dict, field: str, way_out: str):
    listed = {"campaign": "tryout", "domains": [{"name": "chat", "sources": [source]}]}
    with pytest.raises(ConfigError) as caught:
        parse_config(yaml12.dump(listed))
    (line,) = caught.value.problems
    assert line.startswith(f"domains.chat.sources.0.{field}")
    assert way_out in line


def test_loading_refuses_conflicts():
    text = "campaign: a\ndomains: [{name: a, after: [a], sources: [{kind: embedded, name: chat}]}]"
    with pytest.raises(ConfigError, match="cannot come after itself"):
        parse_config(text)


PAIRS = {"kind": "embedded", "name": "replies"}


def test_a_domain_may_align_after_boosting():
    dpo, grpo = {"objective": "dpo", "source": PAIRS}, {"objective": "grpo", "source": SOURCE}
    assert problems(campaign({"name": "chat", "rounds": [{"objective": "sft"}, dpo, grpo]})) == []


@pytest.mark.parametrize(
    ("rounds", "key", "way_out"),
    [
        ([{"objective": "dpo", "source": PAIRS}, {"objective": "sft"}], "domains.chat.rounds =", "at the front"),
        ([{"objective": "sft", "steps": 7}], "domains.chat.rounds.0.steps = 7", "set the domain's own"),
        ([{"objective": "dpo"}], "domains.chat.rounds.0.source: missing", "pairs of answers"),
        ([{"objective": "dpo", "source": PAIRS, "group": 16}], "domains.chat.rounds.0.group = 16", "grpo only"),
        ([{"objective": "grpo", "source": SOURCE, "loss": "ipo"}], "domains.chat.rounds.0.loss", "dpo only"),
        ([{"objective": "grpo", "source": PAIRS}], "domains.chat.rounds.0.source.name", "no such embedded rows"),
        ([{"objective": "dpo", "source": SOURCE}], "domains.chat.rounds.0.source.name", "no such embedded pairs"),
        (
            [{"objective": "dpo", "source": PAIRS, "global_batch": 6, "per_device_batch": 4}],
            "domains.chat.rounds.0.per_device_batch = 4",
            "take a divisor",
        ),
    ],
)
def test_rounds_that_cannot_be_are_told_with_the_way_out(rounds, key, way_out):
    (line,) = problems(campaign({"name": "chat", "rounds": rounds}))
    assert line.startswith(key)
    assert way_out in line
