"""Right and wrong: a row's own answer is right, a changed one is not, and what cannot be told is not told."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache

import pytest

from bs_cluster.config import CampaignConfig
from bs_cluster.config.sources import EMBEDDED_ROWS
from bs_cluster.data.builtin import embedded_rows
from bs_cluster.data.domains import read_rows
from bs_cluster.data.rows import Check, Question, Sample
from bs_cluster.data.verify import code_of, is_right
from bs_cluster.errors import DataError

UNCHECKABLE = {"chat", "code", "european", "licences", "scripts", "readmes", "manual"}


@cache
def rows_of(name: str) -> list[Sample]:
    return embedded_rows(name, seed=7)


def question(row: Sample) -> Question:
    return Question(row.prompt, row.completion, row.check)


def asked(verifier: str, reference: str, key: str = "") -> Question:
    return Question("What?", reference, Check(verifier, key))


def judge(prompt: str, reference: str, answer: str) -> bool:
    """A verifier as a user would write one."""
    return answer in prompt


def changed(answer: str) -> str:
    """The answer with its last number one more; without a number, with its words in another order or one more."""
    if re.search(r"\d", answer):
        return re.sub(r"\d+(?=\D*$)", lambda found: str(int(found.group()) + 1), answer)
    opposite = {"Yes": "No", "No": "Yes", "True": "False", "False": "True"}
    first = re.split(r"\W", answer)[0]
    return answer.replace(first, opposite[first], 1) if first in opposite else f"{answer} indeed"


@pytest.mark.parametrize("name", EMBEDDED_ROWS)
def test_a_built_in_row_accepts_its_own_answer_and_refuses_a_changed_one(name: str):
    rows = [row for row in rows_of(name) if row.check.verifier != "none"][:100]
    assert bool(rows) == (name not in UNCHECKABLE)
    for row in rows:
        assert is_right(question(row), row.completion), row
        assert is_right(question(row), f"  {row.completion}\n\nAnd so on, 17 times."), row
        assert not is_right(question(row), changed(row.completion)), row
        assert not is_right(question(row), ""), row
        assert not is_right(question(row), "I do not know."), row


@pytest.mark.parametrize(("name", "share"), [("math", 1.0), ("reasoning", 1.0), ("medical", 0.5)])
def test_a_domain_has_rows_whose_answers_can_be_checked(name, share):
    counts = Counter(row.check.verifier for row in rows_of(name))
    assert counts.total() - counts["none"] >= share * counts.total()


def test_a_bare_answer_is_as_right_as_one_in_the_row_s_words():
    (row, *_) = [row for row in rows_of("math") if row.prompt.startswith("Calculate ")]
    assert is_right(question(row), row.completion.rpartition("=")[2])


@pytest.mark.parametrize(
    ("verifier", "reference", "right", "wrong"),
    [
        ("exact", "Type 2 diabetes.", 'type 2  Diabetes"', "type 2 diabetes mellitus"),
        ("number", "It is 12.", "12", "12 or 13"),
        ("number", "It is 12.", "12.0\n\n15", "11\n\n12"),
        ("number", "First 3.\nSo it is 1,200.", "3 and 4\n\nmake 1200", "1200\nno, 7"),
        ("number", "none at all", "", "4"),
    ],
)
def test_words_and_numbers(verifier: str, reference: str, right: str, wrong: str):
    assert is_right(asked(verifier, reference), right) == (reference != "none at all")
    assert not is_right(asked(verifier, reference), wrong)


WEATHER = '{"name": "weather", "arguments": {"city": "Rome", "days": 2, "units": ["C"]}}'
ASKS = "[weather(city='Rome', days=2, units=['C']), now()]"


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        (WEATHER, "weather(days=2.0, city='rome', units=['C'])", "weather(city='Rome', units=['C'])"),
        (WEATHER, f"```json\n{WEATHER}\n```\nThat is the call.", WEATHER.replace("2", "true")),
        (WEATHER, f"I ask. <tool_call>{WEATHER}</tool_call>", f"<tool_call>{WEATHER}</tool_call>" * 2),
        (WEATHER, f"{WEATHER}\nIt rains.", f"It rains.\n{WEATHER}"),
        (
            WEATHER,
            json.dumps({"function": {"name": "weather", "arguments": json.dumps(json.loads(WEATHER)["arguments"])}}),
            "",
        ),
        (ASKS, f'[{{"name": "now"}}, {WEATHER}]', WEATHER),
        (
            ASKS,
            "now(), weather('Rome', days=2, units=['C'])".replace("'Rome'", "city='Rome'"),
            ASKS.replace("Rome", "Pisa"),
        ),
        (ASKS, ASKS, ASKS.replace("now()", "now(__import__('os').getpid())")),
        (ASKS, ASKS, ASKS.replace("now()", "now({[]: 1})")),
        (ASKS, ASKS, "[" * 9000),
        (ASKS, ASKS, "f(" * 9000),
        (ASKS, ASKS, f"now({'9' * 4000})"),
    ],
)
def test_calls_are_right_whatever_form_and_order_they_are_written_in(reference: str, right: str, wrong: str):
    assert is_right(asked("calls", reference), right)
    assert not is_right(asked("calls", reference), wrong)


def test_a_reference_without_a_call_has_no_right_answer():
    assert not is_right(asked("calls", "I cannot do that."), "I cannot do that.")


def test_code_is_right_if_its_tests_pass():
    tests = "assert double(2) == 4\nassert double(0) == 0"
    row = asked("tests", "def double(x): return 2 * x", tests)
    assert is_right(row, "def double(x):\n    return x + x")
    assert is_right(row, "Of course:\n```python\ndef double(x):\n    return x << 1\n```\nDone.")
    assert not is_right(row, "def double(x):\n    return x * x + x")
    assert not is_right(row, "import os\nos._exit(0)")
    assert not is_right(row, "")
    assert code_of("no fence") == "no fence"


def source(tmp_path, lines: str, **settings) -> CampaignConfig:
    (tmp_path / "rows.jsonl").write_text(lines)
    listed = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), **settings}
    return CampaignConfig.model_validate({"campaign": "c", "domains": [{"name": "law", "sources": [listed]}]})


def read(config: CampaignConfig):
    return read_rows(config.domains[0].sources[0], "law", config, Counter())


def test_a_user_says_how_rows_are_checked(tmp_path):
    line = '{"prompt": "Say four", "completion": "four", "test": ["assert f() == 4", "assert f()"]}\n'
    (plain,) = read(source(tmp_path, line))
    assert plain.question.check.verifier == "none"
    assert not is_right(plain.question, "four")
    (exact,) = read(source(tmp_path, line, verify="exact"))
    assert is_right(exact.question, "Four.")
    (code,) = read(source(tmp_path, line, verify="tests", tests="test"))
    assert is_right(code.question, "f = lambda: 4")
    (own,) = read(source(tmp_path, line, verify=f"{__name__}:judge"))
    assert is_right(own.question, "Say")
    assert not is_right(own.question, "five")
    with pytest.raises(DataError, match="no unit tests in its column 'tset'"):
        read(source(tmp_path, line, verify="tests", tests="tset"))


def test_generated_rows_are_checked_by_their_generator_s_own_scorer():
    settings = {"kind": "reasoning_gym", "tasks": ["gcd", "countdown"], "take": 4}
    config = CampaignConfig.model_validate({"campaign": "c", "domains": [{"name": "math", "sources": [settings]}]})
    rows = read(config)
    assert {row.question.check.verifier for row in rows} == {"reasoning_gym"}
    for row in rows:
        assert is_right(row.question, row.completion)
        assert not is_right(row.question, f"{row.completion}1")
    # Countdown has many solutions: any that comes out right is.
    solved = rows[1]
    assert is_right(solved.question, f"({solved.completion})")
