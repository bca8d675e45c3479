"""Rows of alignment rounds: what a preference may look like, and that nothing that is judged was ever learned."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_tokenizer

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.aligned import Known, Pair, Task, load_aligned, preference, with_aligned
from bs_cluster.data.clean import normalise
from bs_cluster.data.domains import load_domains
from bs_cluster.data.formats import UnusableRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.errors import DataError

ASKED = [{"role": "user", "content": "Why?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": ASKED, "chosen": said("So."), "rejected": said("No.")},
        {"prompt": "Why?", "chosen": said("So."), "rejected": said("No.")},
        {"chosen": [*ASKED, *said("So.")], "rejected": [*ASKED, *said("No.")]},
        {"prompt": "Why?", "chosen": [*ASKED, *said("So.")], "rejected": [*ASKED, *said("No.")]},
    ],
)
def test_a_preference_in_every_usual_shape(raw):
    prompt, chosen, rejected = preference(raw)
    words = prompt if isinstance(prompt, str) else prompt[-1].content
    assert (words, chosen, rejected) == ("Why?", "So.", "No.")


def test_two_prompts_are_no_preference():
    other = [{"role": "user", "content": "When?"}]
    with pytest.raises(UnusableRow, match="two prompts"):
        preference({"chosen": [*ASKED, *said("So.")], "rejected": [*other, *said("No.")]})


def config(folder, *rounds: dict, rows: int = 60) -> CampaignConfig:
    lines = [json.dumps({"prompt": f"row {i}", "completion": f"answer {i}"}) for i in range(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl")}
    data = {"train_rows": 30, "validation_rows": 8, "sweep_rows": 8, "near_duplicates": None, "template": "plain"}
    domain = {"name": "aa", "sources": [source], "rounds": [{"objective": "sft"}, *rounds]}
    return CampaignConfig.model_validate({"campaign": "aligned", "data": data, "domains": [domain]})


def tasks(folder, **more) -> dict:
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "verify": "exact"}
    return {"objective": "grpo", "source": source, "held_out": 8, **more}


def test_no_prompt_judges_what_learned_from_it(tmp_path):
    """Of the domain's own sixty prompts, sixteen judge it and thirty train it: those are never held out again."""
    campaign = config(tmp_path, tasks(tmp_path))
    known = Known.of(load_domains(campaign).values())
    rows = load_aligned(campaign, "aa", 1, known, tiny_tokenizer())
    held, learned = ({normalise(of.question.prompt) for of in part} for part in (rows.held_out, rows.train))
    assert len(held) == 8
    assert not held & learned
    assert not held & known.trained
    assert not (held | learned) & known.judged
    assert rows.counts["judged elsewhere"] == 16
    assert len(learned) == 60 - 16 - 8


def test_too_few_prompts_are_told_with_the_way_out(tmp_path):
    campaign = config(tmp_path, tasks(tmp_path, held_out=20))
    known = Known.of(load_domains(campaign).values())
    with pytest.raises(DataError, match=r"rounds\.1 \(grpo\): 44 usable prompts, 14 of which .* lower held_out"):
        load_aligned(campaign, "aa", 1, known, tiny_tokenizer())


def test_rows_that_nothing_can_check_are_told(tmp_path):
    entry = tasks(tmp_path)
    entry["source"] = {key: value for key, value in entry["source"].items() if key != "verify"}
    with pytest.raises(DataError, match="set the source's verify"):
        load_aligned(config(tmp_path, entry), "aa", 1, Known(frozenset(), frozenset()), tiny_tokenizer())


def test_frozen_rows_come_back_as_they_were(tmp_path):
    pairs = [{"prompt": f"pair {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]
    pairs[3]["rejected"] = pairs[3]["chosen"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    dpo = {"objective": "dpo", "source": {"kind": "jsonl", "path": str(tmp_path / "pairs.jsonl")}, "held_out": 8}
    campaign = config(tmp_path, dpo, tasks(tmp_path))
    known = Known.of(load_domains(campaign).values())
    aligned = {place: load_aligned(campaign, "aa", place, known, tiny_tokenizer()) for place in (1, 2)}
    assert all(isinstance(row, Pair) for row in aligned[1].train)
    assert all(isinstance(row, Task) for row in aligned[2].held_out)
    assert aligned[1].counts == {"read": 30, "empty or equal": 1, "train": 21, "held_out": 8}
    rows = DomainRows((), (), (), (), (), "print", {"rounds.1: train": 21}, aligned)
    back = DomainRows.from_parquet(rows.to_parquet(), "print", {"rounds.1: train": 21})
    for place in (1, 2):
        assert back.aligned[place].train == aligned[place].train
        assert back.aligned[place].held_out == aligned[place].held_out
    assert with_aligned("print", {}) == "print"
    assert with_aligned("print", aligned) == with_aligned("print", back.aligned) != "print"
    fewer = {1: aligned[1]}
    assert with_aligned("print", fewer) != with_aligned("print", aligned)
