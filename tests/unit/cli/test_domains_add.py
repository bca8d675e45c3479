"""``domains add``: rows are looked at first, and the file keeps its comments."""

import json

import pytest
from tiny_campaign import write_inputs

from bs_cluster.config import load_config, yaml12
from bs_cluster.config.edit import with_domain
from bs_cluster.errors import ConfigError

TEXT = """# ours
campaign: tiny # for ever
base: {{model: {folder}/base}}
data: {{template: plain, max_length: 96, max_prompt_length: 60, validation_rows: 8, sweep_rows: 10}}
training: {{use_gpu: false, steps: 6, global_batch: 8, warmup_steps: 1}}
domains:
  # the first
  - name: aa
    sources: [{{kind: jsonl, path: {folder}/aa.jsonl}}] # words
  # commented out:
  # - name: zz

store: {{uri: {folder}/store}} # at the end
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def config(folder, tmp_path):
    path = tmp_path / "campaign.yaml"
    path.write_text(TEXT.format(folder=folder))
    return path


def test_the_plan_and_then_the_entry_with_every_comment_kept(ran, config, folder):
    before = config.read_text()
    words = ("domains", "add", "--config", str(config), "--name", "bb", "--data", f"{folder}/bb.jsonl", "--after", "aa")
    code, out, _ = ran(*words, "--dry-run", "--json")
    assert code == 0
    told = json.loads(out)
    assert config.read_text() == before
    assert told["rows"]["counts"]["read"] == 120
    assert told["rows"]["tokens"]["shortest"] > 0
    assert told["plan"]["trains"] == ["aa", "bb"]
    assert told["plan"]["passes"] == pytest.approx(6 * 8 / told["rows"]["counts"]["train"])
    code, out, _ = ran(*words)
    assert code == 0
    assert "120 rows read" in out
    lines = config.read_text().splitlines()
    assert [line for line in lines if line in before.splitlines()] == before.splitlines()
    assert load_config(config).domain("bb").after == ("aa",)
    assert ran(*words)[0] == 2  # it is there now


def test_rows_that_a_held_out_row_says_are_told_by_domain(ran, config, folder, tmp_path):
    again = tmp_path / "again.jsonl"
    again.write_text((folder / "aa.jsonl").read_text() + (folder / "cc.jsonl").read_text())
    code, out, err = ran(
        *("domains", "add", "--config", str(config), "--name", "cc", "--data", str(again), "--dry-run", "--json")
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert rows["near"]["aa"] >= 18  # aa holds out 18 rows, and each of them is in the file
    assert rows["counts"]["duplicates"] >= 100


def test_too_few_rows_and_an_unknown_kind_of_file_leave_the_config_alone(ran, config, tmp_path):
    before, few = config.read_text(), tmp_path / "few.jsonl"
    few.write_text('{"prompt": "a", "completion": "b"}\n')
    for data, words in ((few, "hold out"), (tmp_path / "none.jsonl", "no file matches"), ("rows.csv", ".parquet")):
        code, _, err = ran("domains", "add", "--config", str(config), "--name", "few", "--data", str(data))
        assert code == 2
        assert words in err
    assert config.read_text() == before


@pytest.mark.parametrize(
    "domains",
    [
        "domains:\n- name: a\n  sources: [{kind: embedded, name: chat}]\n",
        "domains:\n  - {name: a, sources: [{kind: embedded,\n     name: chat}]}   # two lines\n\n# the end\n",
        "domains:\n    - name: a\n      keywords: [b]\n      sources:\n        - kind: embedded\n          name: |-\n"
        "            chat\n\n    # after\nseed: 3",
        "domains:\n  - keywords: [c]\n    name: |-\n      a\nseed: 3\n",
        "seed: 1\ndomains:\n  - name: a",
    ],
)
def test_an_entry_goes_after_the_last_one_however_it_is_written(domains):
    entry = {"name": "b", "after": ["a"], "sources": [{"kind": "jsonl", "path": "no: *.jsonl"}]}
    edited = with_domain(domains, entry, "it")
    old, new = yaml12.parse(domains, "old"), yaml12.parse(edited, "new")
    assert new == {**old, "domains": [*old["domains"], entry]}
    assert [line for line in edited.splitlines() if line in domains.splitlines()] == domains.splitlines()


def test_a_list_in_brackets_is_left_to_its_owner_who_is_told_the_lines():
    with pytest.raises(ConfigError, match="add this to it by hand:\n  - name: b"):
        with_domain("domains: [{name: a}]\n", {"name": "b"}, "it")
