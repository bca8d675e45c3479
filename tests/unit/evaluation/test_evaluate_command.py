"""``bs_cluster evaluate``: what it prints, keeps and refuses."""

import json
import sys
from pathlib import Path

import pytest

from bs_cluster.evaluation.model import BundleLM


@pytest.fixture
def evaluate(ran, finished, files, monkeypatch):
    """The command on the finished campaign and these files, unless told otherwise."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def evaluate(*words: str):
        given = {"--campaign": "tiny", "--store": finished.store.uri, "--files": str(files), "--tasks": "quiz"}
        given |= dict(zip(words[::2], words[1::2], strict=True))
        return ran("evaluate", *(word for pair in given.items() for word in pair if word))

    return evaluate


def test_three_ways_side_by_side_kept_beside_the_report(evaluate, finished, runtime):
    folder = Path(finished.store.uri) / "tiny" / "report"
    folder.mkdir(exist_ok=True)
    (folder / "report.md").write_text("# The report\n")
    code, out, err = evaluate("--domains", "bb", "--json", "")
    assert code == 0, err
    assert "no MLflow is named" in err
    found = json.loads(out)
    assert found["bundle"] == 2
    assert found["left_out"] == {"quiz": [2]}  # the row that a stack was trained on
    assert found["rows"] == {"quiz": 3}
    scores = {score["mode"]: score for score in found["scores"] if score["metric"] == "acc"}
    assert list(scores) == ["base", "ungated", "routed", "bb"]
    assert (scores["base"]["less_base"], scores["routed"]["less_base"]["rows"]) == (None, 3)
    for mode, on in {"base": (), "ungated": ("aa", "bb"), "routed": None, "bb": ("bb",)}.items():
        assert scores[mode]["value"] == pytest.approx(accuracy(runtime, on))
    gates = runtime.gates([query for query, _, _ in QUIZ])
    assert list(found["gates"]["quiz"].values()) == pytest.approx(gates.mean(0).tolist())

    assert json.loads((folder / "evaluation.json").read_text()) == found
    page = (folder / "evaluation.md").read_text()
    assert "1 row left out" in page
    assert (folder / "report.md").read_text() == f"# The report\n\n{page}"

    assert evaluate("--limit", "1")[0] == 0
    assert (folder / "report.md").read_text().count("## Public tasks") == 1


QUIZ = [
    ("aa alpha of old", ["  ALPHA OF OLD", "  x"], 0),
    ("bb something longer than the window of a sliding layer is, word by word", ["  1", "  2"], 1),
    ("zz no domain's", ["  yes", "  no", "  perhaps"], 2),
]


def accuracy(runtime, on) -> float:
    """Of the rows that are asked, by the definition of it: the gold choice is the likeliest."""
    from test_evaluation_modes import requests  # noqa: PLC0415

    right = 0
    for query, choices, gold in QUIZ:
        pairs = [(query, choice) for choice in choices]
        nats = [n for n, _ in BundleLM(runtime, on, 512, print).loglikelihood(requests(pairs))]
        right += nats.index(max(nats)) == gold
    return right / len(QUIZ)


def test_answers_in_words_and_a_definition_of_one_s_own(evaluate):
    code, out, err = evaluate("--tasks", "words", "--template", "", "--num-fewshot", "1", "--limit", "2")
    assert code == 0, err
    assert "words  exact_match     2" in out
    assert "in the template plain" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tasks", "arc_eazy"), "no task is called 'arc_eazy' and there is no"),
        (("--tasks", "arc_eazy"), "did you mean arc_easy"),
        (("--tasks", "quiz,quiz"), "name each task once"),
        (("--tasks", "lacking"), "a row lacks gold"),
        (("--tasks", "broken"), "broken.jsonl"),
        (("--tasks", "rolling"), "cannot be evaluated: it asks for loglikelihood_rolling"),
        (("--campaign", "tinny"), "campaign 'tinny' has nothing in"),
        (("--bundle", "7"), "campaign 'tiny' has no bundle 7; it has 1 to 2"),
        (("--domains", "aa,zz"), "domain 'zz' is not in the bundle; it has aa, bb"),
        (("--files", "/nowhere"), "--files /nowhere is no folder"),
        (("--limit", "0"), "--limit 0: it must be at least 1"),
    ],
)
def test_wrong_input_is_told_with_the_way_out(evaluate, words, told):
    code, out, err = evaluate(*words)
    assert (code, out) == (2, "")
    assert told in err


def test_without_lm_eval_the_command_says_what_to_install(evaluate, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = evaluate()
    assert code == 2
    assert "pip install 'bs-cluster[evaluate]'" in err


def test_a_task_all_of_whose_rows_were_trained_on_is_refused(evaluate, files, trained_prompt):
    row = {"query": trained_prompt["prompt"], "choices": [trained_prompt["completion"], "no"], "gold": 0}
    (files / "seen.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = evaluate("--tasks", "seen")
    assert code == 2
    assert "task 'seen': all 1 rows are like rows that the campaign was trained on" in err
