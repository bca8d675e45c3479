"""A config is either valid or says everything that is wrong with it, each with its key, value and way out."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bs_cluster.config import load_config, parse_config, to_yaml, yaml12
from bs_cluster.errors import ConfigError

MINIMAL = """
campaign: tryout
domains:
  - name: chat
    sources: [{kind: embedded, name: chat}]
  - name: code
    sources: [{kind: jsonl, path: rows.jsonl}]
"""


def refused(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides)
    return caught.value.problems


def the_line(problems: list[str], start: str) -> str:
    lines = [line for line in problems if line.startswith(start)]
    assert len(lines) == 1, problems
    return lines[0]


def test_overrides_reach_sections_domains_by_name_items_by_index_and_free_keys():
    config = parse_config(
        MINIMAL,
        [
            "training.num_workers=8",
            "training.global_batch=64",
            "training.learning_rate=1e-5",
            "domains.code.steps=200",
            "domains.0.max_rounds=1",
            "domains.code.sources.0.take=10",
            "domains.code.sources.0.where.language=en",
            "stack.target_modules=[q_proj, v_proj]",
            "base.revision=null",
        ],
    )
    assert config.training.num_workers == 8
    assert config.training.learning_rate == 1e-5
    assert config.domain("code").steps == 200
    assert config.domain("chat").max_rounds == 1
    assert config.domain("code").sources[0].take == 10
    assert config.domain("code").sources[0].where == {"language": "en"}
    assert config.stack.target_modules == ("q_proj", "v_proj")


def test_every_problem_is_told_at_once():
    problems = refused(
        """
campaign: Bad-Name
base: {quantization: nf5}
num_workers: 3
training: {wokers: 2, use_gpu: "no", steps: "8", zero_stage: 4}
stack: {top_k: 8}
domains:
  - name: chat
    sources: [{kind: embedded, path: x}]
    after: [chta]
  - name: code
    step: 3
    sources: [{kind: embeded, name: code}]
""",
        "training.lr",
        "domains.cod.steps=3",
    )
    assert "dotted.key=value" in the_line(problems, 'override "training.lr"')
    assert "did you mean code?" in the_line(problems, 'override "domains.cod.steps=3"')
    assert "lowercase" in the_line(problems, 'campaign = "Bad-Name"')
    assert "did you mean nf4?" in the_line(problems, 'base.quantization = "nf5"')
    assert "did you mean training.num_workers?" in the_line(problems, "num_workers = 3")
    assert "did you mean training.num_workers?" in the_line(problems, "training.wokers = 2")
    assert "boolean" in the_line(problems, 'training.use_gpu = "no"')
    assert "without quotes" in the_line(problems, 'training.steps = "8"')
    assert "0, 1, 2 or 3" in the_line(problems, "training.zero_stage = 4")
    assert "did you mean domains.code.steps?" in the_line(problems, "domains.code.step = 3")
    assert "did you mean embedded?" in the_line(problems, 'domains.code.sources.0.kind = "embeded"')
    # Cross-field rules still look at what is valid.
    assert "stack.experts = 4" in the_line(problems, "stack.top_k = 8")
    assert "did you mean chat?" in the_line(problems, "domains.chat.after")
    assert "needs it" in the_line(problems, "domains.chat.sources.0.name")
    assert "remove it" in the_line(problems, "domains.chat.sources.0.path")
    assert len(problems) == 15


def test_a_rule_is_silent_about_a_value_that_is_wrong_in_itself():
    problems = refused(MINIMAL + "data: {max_length: many, max_prompt_length: 600}")
    assert [line.split(" ")[0] for line in problems] == ["data.max_length"]


@pytest.mark.parametrize("value", ["true", '"8"', "8.0", "[8]", "null", "0", "-1"])
def test_nothing_is_coerced(value: str):
    assert the_line(refused(MINIMAL, f"training.num_workers={value}"), "training.num_workers")


def test_repeated_keys_are_named_with_their_lines():
    problems = refused("campaign: a\ntraining:\n  steps: 1\n  steps: 2\ncampaign: b\n")
    assert problems == [
        "campaign: training.steps is given twice, on lines 3 and 4; keep one",
        "campaign: campaign is given twice, on lines 1 and 5; keep one",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("12:30", "12:30"), ("no", "no"), ("2024-01-01", "2024-01-01"), ("010", 10), ("~", None)],
)
def test_yaml_means_what_people_read(text: str, value: object):
    assert yaml12.parse(text, "test") == value


PRINTABLE = st.text(st.characters(max_codepoint=0x2FFF).filter(str.isprintable), min_size=1, max_size=8)


@settings(max_examples=100)
@given(
    st.dictionaries(
        PRINTABLE,
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), PRINTABLE),
        max_size=4,
    )
)
def test_what_is_dumped_parses_back(value: dict):
    assert yaml12.parse(yaml12.dump(value), "test") == value


def test_the_resolved_config_loads_back_to_an_equal_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    text = MINIMAL + "\ntraining: {learning_rate: 1e-7}\nregistry: {experiment: '1e-3'}"
    config = parse_config(text, ["domains.code.after=[chat]"])
    file = tmp_path / "campaign.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file) == config


def test_files_that_are_not_there_are_told_with_everything_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "campaign.yaml"
    file.write_text(MINIMAL + "base: {model: ./gone}\ntraining: {steps: 0}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    keys = [line.partition(" ")[0] for line in caught.value.problems]
    assert keys == ["training.steps", "domains.code.sources.0.path", "base.model"]
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "gone").mkdir()
    assert load_config(file, ["training.steps=50"]).base.model == "./gone"


def test_a_bundles_config_is_read_where_its_inputs_are_not():
    assert parse_config(MINIMAL + "base: {model: ./gone}").base.model == "./gone"


def test_a_key_without_its_section_is_looked_for_in_the_others():
    assert "did you mean training.steps or domains.<item>.steps?" in the_line(refused(MINIMAL, "steps=3"), "steps")
    assert "did you mean stack.rank?" in the_line(refused(MINIMAL, "rank=3"), "rank")


@pytest.mark.parametrize(
    "override",
    [
        "training.learning_rate=1e999",
        "training.steps=1000000000000",
        "stack.rank=10000000",
        "training.threads_per_worker=1000000",
        "sweep.threads_per_evaluator=1000000",
        "data.max_length=1000000000000",
        "seed=-1",
    ],
)
def test_values_that_cannot_work_are_refused(override: str):
    assert the_line(refused(MINIMAL, override), override.partition("=")[0] + " = ")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "unfold to more than"),
        ("a: &a [*a]", "unfold to more than"),
        ("[" * 50_000, "nested too deep"),
        ("- " * 30_000, "nested too deep"),
        ("a: " + "x" * 1_000_000, "at most"),
        ("a: \x00", "not valid YAML"),
        ("a: " + "9" * 10_000, "a number of 10000 digits"),
    ],
)
def test_what_could_only_be_an_accident_or_an_attack_is_refused_quickly(text: str, reason: str):
    started = time.process_time()
    assert reason in refused(text)[0]
    assert time.process_time() - started < 2


def test_a_binary_a_huge_and_a_special_file_are_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"campaign: a\xff\xfe")
    (tmp_path / "huge").write_bytes(b"#" * 1_000_000)
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {"binary": "not UTF-8", "huge": "1000000 bytes", "pipe": "no regular file"}.items():
        with pytest.raises(ConfigError, match=reason):
            load_config(tmp_path / name)


def test_a_missing_file_and_a_list_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    assert "should be a mapping" in refused("- a")[0]
    assert "not valid YAML" in refused("a: [")[0]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.steps.more=1", "no keys below"),
        ("domains.7.steps=1", "has no item 7"),
        ("=3", "dotted.key=value"),
        ("training.steps=[", "not valid YAML"),
    ],
)
def test_overrides_that_lead_nowhere(override: str, reason: str):
    assert reason in the_line(refused(MINIMAL + "training: {steps: 50}", override), "override")
