"""The configs we ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from bs_cluster.config import curriculum, effective_domain, load_config, parse_config, to_yaml

PRESETS = sorted((Path(__file__).parents[3] / "jobs" / "configs").glob("*.yaml"))


def test_the_presets_are_there():
    assert {path.stem for path in PRESETS} >= {"embedded", "gemma3_12b", "psn", "psn_gpt2", "tinyllama"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_valid_and_named_like_its_file(path: Path):
    config = load_config(path)
    assert config.campaign == path.stem
    assert parse_config(to_yaml(config)) == config
    assert path.read_text().startswith("# yaml-language-server: $schema=../../docs/config.schema.json\n")


def test_the_embedded_preset_needs_no_hub_and_no_gpu():
    config = load_config(next(path for path in PRESETS if path.stem == "embedded"))
    assert config.base.model.startswith("embedded:")
    assert {source.kind for domain in config.domains for source in domain.sources} == {"embedded"}
    assert not config.training.use_gpu
    assert config.sweep.gpus_per_evaluator == 0


def test_the_flagship_is_the_papers():
    config = load_config(next(path for path in PRESETS if path.stem == "gemma3_12b"))
    training = config.training
    assert curriculum(config) == ("chat", "code", "math", "medical", "reasoning")
    assert training.global_batch == 16
    assert effective_domain(config, "reasoning").steps == 600
    assert effective_domain(config, "chat").steps == 500


@pytest.mark.parametrize("name", ["psn", "psn_gpt2"])
def test_a_language_model_from_stacks_alone_has_six_domains_and_needs_no_hub(name: str):
    config = load_config(next(path for path in PRESETS if path.stem == name))
    assert config.base.model == "random:llama"
    assert len(config.domains) == 6
    assert {source.kind for domain in config.domains for source in domain.sources} == {"embedded"}
    assert config.null_space.enabled


def test_the_larger_one_has_gpt2s_shape():
    sizes = load_config(next(path for path in PRESETS if path.stem == "psn_gpt2")).base.random
    assert (sizes.layers, sizes.hidden, sizes.heads, sizes.context) == (12, 768, 12, 1024)


def test_the_flagships_optional_alignment_is_valid():
    """Uncommented as its comment says."""
    text = next(path for path in PRESETS if path.stem == "gemma3_12b").read_text().replace("#> ", "")
    config = parse_config(text)
    objectives = {domain.name: [entry.objective for entry in domain.rounds] for domain in config.domains}
    assert objectives["chat"] == ["sft", "dpo"]
    assert objectives["math"] == ["sft", "grpo"]
