"""The command line as a user meets it: quick help, exit codes, JSON, errors that name the way out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_history import commit_round

from bs_cluster.cli.main import VERBS, main
from bs_cluster.store import Store

ROOT = Path(__file__).resolve().parents[3]
EMBEDDED = str(ROOT / "jobs/configs/embedded.yaml")


@pytest.fixture
def ran(capsys):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def ran(*words: str):
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return ran


@pytest.fixture
def held(tmp_path):
    """The folder of a store that holds campaign ``demo`` with one committed stack."""
    store = Store(str(tmp_path / "held"), "demo")
    commit_round(store, tmp_path / "staged", "chat", 1)
    return str(tmp_path / "held")


def test_help_answers_before_anything_heavy_is_imported():
    code = (
        "import sys\nfrom bs_cluster.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'ray', 'mlflow', 'pydantic', 'pyarrow', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(ran, verb):
    code, out, _ = ran(verb, "--help")
    assert code == 0
    assert out.startswith(f"usage: bs_cluster {verb}")


def test_a_sound_config_is_said_to_be_sound(ran):
    code, out, _ = ran("config", "check", EMBEDDED)
    assert code == 0
    assert "embedded is sound: chat -> code" in out


def test_every_problem_of_a_config_is_told_at_once_with_code_2(ran):
    code, out, err = ran("config", "check", EMBEDDED, "training.stepz=3", "stack.rank=-1")
    assert (code, out) == (2, "")
    assert "training.stepz" in err
    assert "stack.rank" in err


def test_show_gives_a_config_that_reads_back_the_same(ran, tmp_path):
    _, shown, _ = ran("config", "show", EMBEDDED, "seed=7")
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert ran("config", "show", str(again))[1] == shown


def test_json_is_one_value_and_so_is_an_error(ran, held):
    code, out, _ = ran("domains", "list", "--campaign", "demo", "--store", held, "--json")
    assert code == 0
    assert json.loads(out)["open"] == ["chat_r1"]
    code, _, err = ran("domains", "list", "--campaign", "dem", "--store", held, "--json")
    assert code == 1
    assert json.loads(err)["error"] == "NotInStoreError"


def test_an_unknown_campaign_is_told_which_there_are(ran, held):
    code, _, err = ran("bundles", "list", "--campaign", "dem", "--store", held)
    assert code == 1
    assert "it holds demo" in err


def test_registry_sync_asks_which_mlflow_before_it_looks_at_anything(ran, held, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, err = ran("registry", "sync", "--campaign", "demo", "--store", held)
    assert code == 2
    assert "--tracking-uri" in err
