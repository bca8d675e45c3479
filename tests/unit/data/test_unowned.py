"""Rows that no domain owns: enough of every kind, answers that were computed and can be checked, a fixed choice."""

import re

import pytest

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.config.sources import EMBEDDED_DOMAINS, EMBEDDED_FOREIGN, EMBEDDED_MIXED
from bs_cluster.data.builtin import embedded_rows
from bs_cluster.data.foreign import FOREIGN
from bs_cluster.data.mixed import MIXED
from bs_cluster.data.procedural import last_number
from bs_cluster.data.unowned import load_unowned
from bs_cluster.errors import DataError


@pytest.fixture(scope="module")
def owned() -> set[str]:
    """Every prompt of the built-in domains."""
    return {row.prompt for domain in EMBEDDED_DOMAINS for row in embedded_rows(domain, seed=1)}


def config(mixed=("doses", "chains"), foreign=("manual",), rows=9, **changes) -> CampaignConfig:
    def kinds(names):
        return [{"name": name, "source": {"kind": "embedded", "name": name}, "rows": rows} for name in names]

    return CampaignConfig.model_validate(
        {
            "campaign": "c",
            "domains": [{"name": "math", "sources": [{"kind": "embedded", "name": "math"}]}],
            "sweep": {"mixed": kinds(mixed), "foreign": kinds(foreign)},
            **changes,
        }
    )


def test_the_config_knows_every_kind():
    assert set(EMBEDDED_MIXED) == MIXED.keys()
    assert set(EMBEDDED_FOREIGN) == FOREIGN.keys()


@pytest.mark.parametrize("kind", EMBEDDED_MIXED)
def test_a_mixed_kind_has_two_hundred_rows_with_answers_that_are_checked(kind):
    rows = embedded_rows(kind, seed=1)
    assert len({row.prompt for row in rows}) >= 200
    for _, completion, _ in rows:
        assert last_number(completion) is not None
        wrong = re.sub(r"\d+(?=\D*$)", lambda found: str(int(found.group()) + 1), completion)
        assert last_number(wrong) != last_number(completion)
    assert rows == embedded_rows(kind, seed=1)
    assert rows != embedded_rows(kind, seed=2)


def test_answers_are_the_values_of_what_is_asked():
    for prompt, completion, _ in embedded_rows("values", seed=3):
        scope: dict = {}
        exec(prompt.partition("\n\n")[0], scope)
        call = re.search(r"What does (\w+\(\d+\)) return", prompt)
        assert call is not None
        assert str(eval(call.group(1), scope)) == last_number(completion)
    for kind in ("doses", "chains"):
        for _, completion, _ in embedded_rows(kind, seed=3):
            for left, right in re.findall(r"(\d+ [*+/-] \d+) = (\d+)", completion):
                assert eval(left) == int(right)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *(("It is 12.", "12"), ("3 * -4 = -12\nand then 5", "-12"), ("none", None), ("", None), ("10-4", "4")),
        *(("1,250.50 euros", "1250.50"), ("1,2,3", "3"), ("f(2) is -3.", "-3")),
    ],
)
def test_an_answer_is_the_last_number_of_the_first_line(text, answer):
    assert last_number(text) == answer


@pytest.mark.parametrize("kind", EMBEDDED_FOREIGN)
def test_a_foreign_kind_is_large_enough_and_is_no_domain_s(kind, owned):
    rows = embedded_rows(kind, seed=1)
    assert len({row.prompt for row in rows}) >= 100
    assert all(row.prompt.strip() and row.completion.strip() for row in rows)
    assert len({row.prompt for row in rows} & owned) <= 0.01 * len(rows)


def test_rows_are_named_by_kind_once_each_and_chosen_by_content():
    rows = load_unowned(config())
    owners = [row.domain for row in rows]
    assert owners == ["mixed:doses"] * 9 + ["mixed:chains"] * 9 + ["foreign:manual"] * 9
    assert len({row.prompt for row in rows}) == 27
    assert load_unowned(config()) == rows
    assert load_unowned(config(rows=5))[:5] == rows[:5]  # more rows keep the fewer


def test_a_kind_with_too_few_rows_is_refused():
    with pytest.raises(DataError, match=r"foreign:ciphers has \d+ rows, 5000 are wanted"):
        load_unowned(config(mixed=(), foreign=("ciphers",), rows=5000))
