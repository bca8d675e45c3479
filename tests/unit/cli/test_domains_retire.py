"""``domains remove``, ``replace``, ``rollback``: the plan first, then the fact, and the config keeps its comments."""

import json
from pathlib import Path

import pytest
from tiny_history import bundle_manifest, close_after

from bs_cluster.config import load_config, yaml12
from bs_cluster.config.edit import without_domain
from bs_cluster.errors import ConfigError
from bs_cluster.store import Store

TEXT = """# ours
campaign: demo # for ever
base: {{model: embedded:gemma3-270m}}
domains:
  # the first
  - name: chat
    sources: [{{kind: embedded, name: chat}}] # words
  # the middle one
  - name: math
    after: [chat]
    sources: [{{kind: embedded, name: math}}]
  - name: code
    after: [chat, math] # both
    sources:
      - {{kind: embedded, name: code}}

store: {{uri: {folder}/store}} # at the end
"""


@pytest.fixture
def config(tmp_path):
    """The config of a finished campaign whose math and code kept out of what was before them."""
    path = tmp_path / "campaign.yaml"
    path.write_text(TEXT.format(folder=tmp_path))
    store = Store(str(tmp_path / "store"), "demo")
    store.pin_identity({"config": "one"})
    for position, (domain, rounds) in enumerate({"chat": 2, "math": 1, "code": 1}.items()):
        close_after(store, tmp_path / "staged", domain, rounds, position)
    store.commit_bundle(bundle_manifest(store))
    store.promote(1, "champion", "guarded", "the first")
    return path


@pytest.fixture
def store(config):
    return Store(str(config.parent / "store"), "demo")


@pytest.fixture
def asked(ran, config):
    def asked(action: str, name: str, *more: str):
        code, out, err = ran(
            *("domains", action, "--config", str(config), "--name", name, "--reason", "licence", "--json", *more)
        )
        assert code == 0, err
        return json.loads(out)

    return asked


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("action", ["remove", "replace", "rollback"])
def test_a_dry_run_tells_the_plan_and_changes_nothing(asked, config, action):
    before = contents(config.parent)
    told = asked(action, "chat", "--dry-run")
    assert contents(config.parent) == before
    assert told["written"] is False
    assert set(told["retirement"]["kept"]) == {"math", "code"}
    assert told["stay"] == ["math", "code"]
    assert told["trains"] == (["chat"] if action == "replace" else [])
    assert told["closes"] == (["chat"] if action == "rollback" else [])


def test_the_plan_in_words(ran, config):
    words = ("domains", "remove", "--config", str(config), "--name", "math", "--reason", "licence", "--dry-run")
    code, out, _ = ran(*words)
    assert code == 0
    assert out.splitlines() == [
        "math_r1 retired: licence",
        "  code trained beside math_r1; kept, with these recorded parents missing",
        "  its directions are free again for domains to come",
        "  alone as they are, to the bit: chat, code",
        "  bundle 1 holds it and is served until the next run has made another",
        "nothing is changed (--dry-run)",
    ]


def test_a_removed_domain_leaves_the_config_and_its_comments_stay(asked, config, store):
    asked("remove", "math")
    text = config.read_text()
    for comment in ("# ours", "# for ever", "# the first", "# words", "# the middle one", "# both", "# at the end"):
        assert comment in text
    loaded = load_config(config)
    assert [domain.name for domain in loaded.domains] == ["chat", "code"]
    assert loaded.domain("code").after == ("chat",)
    assert [ref.stack.name for ref, _ in store.stacks()] == ["chat_r1", "chat_r2", "code_r1"]


def test_one_that_was_killed_is_finished_by_the_same_command(asked, config, store):
    """Between the fact and the config, and between that and the bytes."""
    before = config.read_text()
    asked("remove", "math")
    config.write_text(before)
    told = asked("remove", "math", "--purge")
    assert told["retirement"] is None
    assert told["written"] is True
    assert told["champion"] is None, "what is erased is not served"
    assert "math" not in [domain.name for domain in load_config(config).domains]
    assert len(store.retirements()) == 1
    assert set(store.erasures()[0].digests) == set(told["erases"]) != set()
    assert store.verify().sound
    assert asked("remove", "math", "--purge")["written"] is False


def test_all_dependants_may_train_anew(asked, store, config):
    told = asked("replace", "math", "--retrain", "all")
    assert told["retirement"]["fates"] == {"math": "replaced", "code": "replaced"}
    assert told["trains"] == ["math", "code"]
    assert told["stay"] == ["chat"]
    assert [ref.stack.name for ref, _ in store.stacks()] == ["chat_r1", "chat_r2"]
    assert "math" in config.read_text()


def test_a_rollback_twice_takes_one_round(asked, store):
    assert asked("rollback", "chat")["written"] is True
    assert asked("rollback", "chat")["written"] is False
    assert [ref.stack.name for ref, _ in store.stacks()] == ["chat_r1", "math_r1", "code_r1"]


def test_what_is_missing_and_why_is_listed(ran, asked, config):
    asked("remove", "math")
    code, out, _ = ran("domains", "list", "--config", str(config))
    assert code == 0
    assert "code: trained beside math_r1, retired since" in out
    assert "math removed (math_r1): licence" in out


def test_a_run_under_way_commits_nothing_any_more(asked, store, config):
    running = Store(store.uri, "demo")
    epoch = running.take_epoch()
    asked("remove", "math")
    with pytest.raises(Exception, match="another coordinator has taken over"):
        running.check_epoch(epoch)


def test_what_is_not_there_is_told(ran, config):
    for action, name, words in (
        ("remove", "zz", "no domain 'zz'"),
        ("replace", "zz", "has no domain 'zz'"),
        ("rollback", "math", "one of them has to stay"),
    ):
        code, _, err = ran("domains", action, "--config", str(config), "--name", name, "--reason", "x")
        assert code == 2
        assert words in err
    assert ran("domains", "remove", "--config", str(config), "--name", "math")[0] == 2  # no reason


def test_a_name_is_not_given_twice(ran, asked, config, tmp_path):
    asked("remove", "math")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 40)
    code, _, err = ran("domains", "add", "--config", str(config), "--name", "math", "--data", str(rows))
    assert code == 2
    assert "hold out" in err or "had a domain 'math' before" in err


@pytest.mark.parametrize(
    "domains",
    [
        "domains:\n- name: a\n  sources: [{kind: x}]\n- name: b\n  after: [a]\nseed: 1\n",
        "domains:\n  - name: c\n  # of a\n  - sources:\n      - kind: x\n    name: a\n\n  - name: b\n    after:\n"
        "      - a # one\n      - c # two\n# end\n",
        "seed: 1\ndomains:\n  - name: b\n    after: [c, a]   # both\n  - name: c\n  - name: a",
    ],
)
def test_an_item_goes_however_it_is_written(domains):
    old, new = yaml12.parse(domains, "old"), yaml12.parse(without_domain(domains, "a", "it"), "new")
    assert [item["name"] for item in new["domains"]] == [item["name"] for item in old["domains"] if item["name"] != "a"]
    assert all("a" not in item.get("after", ()) for item in new["domains"])
    assert {key: new[key] for key in new if key != "domains"} == {key: old[key] for key in old if key != "domains"}


def test_a_list_in_brackets_is_left_to_its_owner():
    with pytest.raises(ConfigError, match="by hand"):
        without_domain("domains: [{name: a}, {name: b}]\n", "a", "it")
