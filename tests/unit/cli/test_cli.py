"""The command line as a user meets it: quick help, exit codes, JSON, errors that name the way out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_history import commit_round, domain_record

from bs_cluster.cli.main import VERBS
from bs_cluster.store import Store

ROOT = Path(__file__).resolve().parents[3]
EMBEDDED = str(ROOT / "jobs/configs/embedded.yaml")
HEAVY = ("torch", "numpy", "ray", "mlflow", "pydantic", "pyarrow", "transformers", "rich", "yaml")


@pytest.fixture
def held(tmp_path):
    """The folder of a store that holds campaign ``demo`` with one closed domain and one committed stack of another."""
    store = Store(str(tmp_path / "held"), "demo")
    store.pin_identity({"seed": 1})
    commit_round(store, tmp_path / "staged", "chat", 1)
    store.close_domain(domain_record(store, "chat"))
    commit_round(store, tmp_path / "staged", "math", 1, 1)
    return str(tmp_path / "held")


def demo(held: str, *more: str) -> list[str]:
    return ["--campaign", "demo", "--store", held, *more]


@pytest.mark.parametrize("words", [["--help"], ["bundles", "list", "--help"], ["run", "--help"]])
def test_help_answers_before_anything_heavy_is_imported(words):
    code = (
        f"import sys\nfrom bs_cluster.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"
    assert done.stdout.startswith("usage: bs_cluster")


def test_a_plain_install_says_what_a_verb_needs(held):
    words = ["domains", "list", *demo(held)]
    code = f"import sys\nsys.modules['pyarrow'] = None\nfrom bs_cluster.cli.main import main\nsys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "bs_cluster domains needs pyarrow, which is not installed" in done.stderr
    assert "pip install 'bs-cluster[cluster]'" in done.stderr


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "bs_cluster.cli", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.startswith("bs_cluster ")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(ran, verb):
    code, out, _ = ran(verb, "--help")
    assert code == 0
    assert out.startswith(f"usage: bs_cluster {verb}")


class TestConfig:
    def test_a_sound_one_is_said_to_be_sound(self, ran):
        code, out, _ = ran("config", "check", "--config", EMBEDDED)
        assert code == 0
        assert "embedded is sound: chat -> code" in out

    def test_every_problem_is_told_at_once_with_code_2(self, ran):
        code, out, err = ran("config", "check", "--config", EMBEDDED, "training.stepz=3", "stack.rank=-1")
        assert (code, out) == (2, "")
        assert "training.stepz" in err
        assert "stack.rank" in err

    def test_show_gives_one_that_reads_back_the_same(self, ran, tmp_path):
        _, shown, _ = ran("config", "show", "--config", EMBEDDED, "seed=7")
        again = tmp_path / "again.yaml"
        again.write_text(shown)
        assert ran("config", "show", f"--config={again}")[1] == shown
        assert "seed: 7" in shown

    def test_the_schema_is_json(self, ran):
        assert "domains" in json.loads(ran("config", "schema")[1])["properties"]

    def test_a_run_of_a_wrong_one_connects_to_nothing(self, ran):
        code, _, err = ran("run", "--config", EMBEDDED, "seed=-1")
        assert code == 2
        assert "seed = -1" in err


class TestNamingACampaign:
    def test_by_its_config_with_overrides(self, ran, held):
        words = ("--config", EMBEDDED, f"store.uri={held}", "campaign=demo", "--json")
        code, out, _ = ran("domains", "list", *words)
        assert code == 0
        assert json.loads(out)["open"] == ["math_r1"]

    def test_an_option_after_it_may_be_written_with_its_value(self, ran, held):
        words = ("--config", EMBEDDED, f"store.uri={held}", "campaign=demo", "--tolerance=0.02", "chess")
        code, _, err = ran("domains", "compress", *words)
        assert (code, "no closed domain 'chess'" in err) == (2, True), err

    def test_an_unknown_one_is_told_which_there_are(self, ran, held):
        code, out, err = ran("bundles", "list", "--campaign", "dem", "--store", held)
        assert (code, out) == (2, "")
        assert "it holds demo" in err

    def test_none_and_two_are_wrong(self, ran, held):
        assert ran("bundles", "list")[0] == 2
        code, _, err = ran("bundles", "list", "--config", EMBEDDED, "--store", held)
        assert code == 2
        assert "leave --campaign and --store out" in err

    def test_by_the_environment(self, ran, held, monkeypatch):
        monkeypatch.setenv("BS_CLUSTER_STORE", held)
        assert ran("domains", "list", "--campaign", "demo")[0] == 0


def test_json_is_one_value_and_so_is_an_error(ran, held):
    code, out, _ = ran("domains", "list", *demo(held, "--json"))
    assert code == 0
    assert json.loads(out)["closed"][0]["domain"] == "chat"
    code, _, err = ran("domains", "list", "--campaign", "dem", "--store", held, "--json")
    assert code == 2
    assert json.loads(err)["error"] == "UsageError"


def test_what_is_printed_holds_no_escape_codes(ran, held):
    for words in (("domains", "list"), ("store", "history"), ("store", "verify"), ("bundles", "list")):
        assert "\x1b" not in "".join(map(str, ran(*words, *demo(held))))


class TestStore:
    def test_a_sound_one(self, ran, held):
        code, out, _ = ran("store", "verify", *demo(held))
        assert code == 0
        assert "demo is sound: 4 refs" in out

    def test_one_that_is_not_is_a_finding_and_a_copy_mends_it(self, ran, held, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(held, copy)
        (Path(held) / "demo/refs/domains/chat/1.json").write_text("{}")
        next(path for path in (Path(held) / "demo/blobs").rglob("*") if path.is_file()).unlink()
        code, out, _ = ran("store", "verify", *demo(held, "--json"))
        assert code == 1
        assert {problem["kind"] for problem in json.loads(out)["problems"]} >= {"disagrees", "missing"}
        assert ran("store", "repair", *demo(held))[0] == 1
        assert ran("store", "repair", *demo(held, "--from", str(copy)))[0] == 0
        assert ran("store", "verify", *demo(held))[0] == 0

    def test_the_history_in_order(self, ran, held):
        refs = [entry["ref"] for entry in json.loads(ran("store", "history", *demo(held, "--json"))[1])]
        assert refs == [
            "refs/campaign.json",
            "refs/stacks/chat/1.json",
            "refs/domains/chat/1.json",
            "refs/stacks/math/1.json",
        ]

    def test_gc_deletes_what_nothing_leads_to(self, ran, held):
        Store(held, "demo").put_bytes("stray", b"stray")
        assert json.loads(ran("store", "gc", *demo(held, "--json"))[1])["blobs"] == []
        assert len(json.loads(ran("store", "gc", *demo(held, "--older-than-days", "0", "--json"))[1])["blobs"]) == 1
        assert ran("store", "verify", *demo(held))[0] == 0


def test_registry_sync_asks_which_mlflow(ran, held, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, err = ran("registry", "sync", *demo(held))
    assert code == 2
    assert "--tracking-uri" in err


def test_generate_without_a_bundle_and_without_a_prompt(ran, held):
    code, _, err = ran("generate", *demo(held), "hello")
    assert code == 1
    assert "no bundle" in err
    assert ran("generate", *demo(held), " ")[0] == 2
