"""From a config to a campaign's data: cleaning, duplicates, decontamination, counts."""

import json
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from bs_cluster.config.schema import CampaignConfig, DataSection, DomainSection
from bs_cluster.config.sources import EmbeddedSource, JsonlSource
from bs_cluster.data.clean import normalise
from bs_cluster.data.decontaminate import detect_domain, domain_words
from bs_cluster.data.domains import load_domains
from bs_cluster.errors import DataError


def write_jsonl(path, pairs):
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs), encoding="utf-8")


def campaign(folder, domains, after=None, keywords=None, **data):
    """A campaign over ``{domain: [(prompt, completion), ...]}``, written as JSONL in ``folder``."""
    sections = []
    for name, pairs in domains.items():
        write_jsonl(folder / f"{name}.jsonl", pairs)
        source = JsonlSource(kind="jsonl", path=str(folder / f"{name}.jsonl"))
        sections.append(
            DomainSection(
                name=name, sources=(source,), after=(after or {}).get(name, ()), keywords=(keywords or {}).get(name, ())
            )
        )
    # Numbered sentences are all near each other.
    sizes = {
        "near_duplicates": None,
        "validation_rows": 4,
        "sweep_rows": 2,
        "max_length": 64,
        "max_prompt_length": 48,
        **data,
    }
    return CampaignConfig(campaign="test", domains=tuple(sections), data=DataSection(**sizes))


def plain(name, n=12):
    return [(f"{name} topic {i}", f"about {name} {i}") for i in range(n)]


def prompts(rows):
    return {normalise(row.prompt) for row in rows}


def test_each_domain_comes_split_and_counted(tmp_path):
    loaded = load_domains(campaign(tmp_path, {"chat": plain("chat"), "law": plain("law", 20)}))
    assert list(loaded) == ["chat", "law"]
    law = loaded["law"]
    assert (len(law.train), len(law.validation), len(law.sweep)) == (14, 4, 2)
    assert all(row.domain == "law" for row in (*law.train, *law.validation, *law.sweep))
    assert law.counts == {
        "read": 20, "unusable": 0, "empty": 0, "stripped": 0, "duplicates": 0, "contaminated_out": 0,
        "contaminated_in": 0, "near_duplicates": 0, "train": 14, "validation": 4, "sweep": 2,
    }  # fmt: skip


def test_domains_come_in_curriculum_order(tmp_path):
    config = campaign(tmp_path, {"law": plain("law"), "chat": plain("chat")}, after={"law": ("chat",)})
    assert list(load_domains(config)) == ["chat", "law"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_no_prompt_is_in_two_splits_or_two_domains(tmp_path, seed):
    rng = random.Random(seed)
    shared = [f"Tell me {word} of the patient's disease in python, function {i}" for i in range(6) for word in "ab"]
    domains = {
        name: [(rng.choice([p, p.upper(), f" {p} "]), name) for p in rng.sample(shared, 8)] + plain(name, 10)
        for name in ("chat", "code", "medical")
    }
    loaded = load_domains(campaign(tmp_path, domains))
    splits = [prompts(split) for data in loaded.values() for split in (data.train, data.validation, data.sweep)]
    assert sum(map(len, splits)) == len(set().union(*splits))
    for data in loaded.values():
        kept = sum(data.counts[split] for split in ("train", "validation", "sweep"))
        lost = sum(data.counts[step] for step in ("empty", "duplicates", "contaminated_out", "near_duplicates"))
        assert kept == data.counts["read"] - lost + data.counts["contaminated_in"]


def test_a_prompt_in_two_domains_stays_with_the_first_in_the_curriculum(tmp_path):
    both = [("What is a deed?", "A paper.")]
    domains = {"law": both + plain("law"), "chat": both + plain("chat")}
    loaded = load_domains(campaign(tmp_path, domains, after={"law": ("chat",)}))
    assert loaded["law"].counts["duplicates"] == 1
    chat = loaded["chat"]
    assert "what is a deed?" in prompts((*chat.train, *chat.validation, *chat.sweep))


CODE_IN_CHAT = ("Can you write a Python function?", "Sure: def f(): return 1")


def test_a_specialists_row_in_chat_moves_to_its_domain_and_only_trains(tmp_path):
    for extra in range(8):  # wherever its hash would have ranked it
        stray = (f"{CODE_IN_CHAT[0]} Number {extra}", CODE_IN_CHAT[1])
        domains = {"chat": [stray, *plain("chat")], "code": plain("code")}
        loaded = load_domains(campaign(tmp_path, domains))
        assert normalise(stray[0]) in prompts(loaded["code"].train)
        assert (loaded["chat"].counts["contaminated_out"], loaded["code"].counts["contaminated_in"]) == (1, 1)
        moved = next(row for row in loaded["code"].train if row.prompt == stray[0])
        assert moved.domain == "code"


def test_decontamination_can_be_off_and_leaves_specialists_and_absent_domains_alone(tmp_path):
    stray = [CODE_IN_CHAT]
    off = load_domains(campaign(tmp_path, {"chat": stray + plain("chat"), "code": plain("code")}, decontaminate=False))
    assert off["chat"].counts["contaminated_out"] == 0
    specialist = load_domains(campaign(tmp_path, {"math": stray + plain("math"), "code": plain("code")}))
    assert specialist["math"].counts["contaminated_out"] == 0
    absent = load_domains(campaign(tmp_path, {"chat": stray + plain("chat"), "law": plain("law")}))
    assert absent["chat"].counts["contaminated_out"] == 0


def test_a_domains_own_keywords_take_the_place_of_the_built_in_list(tmp_path):
    stray = ("My landlord broke the lease", "The tenant can sue")
    domains = {"chat": [stray, *plain("chat")], "law": plain("law")}
    loaded = load_domains(campaign(tmp_path, domains, keywords={"law": ("lease", "tenant")}))
    assert loaded["law"].counts["contaminated_in"] == 1


def test_keywords_are_whole_words_and_one_is_not_enough():
    specialists = domain_words(
        [
            DomainSection(name=name, sources=(EmbeddedSource(kind="embedded", name="chat"),))
            for name in ("code", "medical")
        ]
    )
    assert detect_domain("A capital scripture looped around", specialists) is None  # not api, script, loop
    assert detect_domain("I love Python", specialists) is None
    assert detect_domain("Python, python and Python again", specialists) is None
    assert detect_domain("Python functions", specialists) == "code"
    assert detect_domain("x = [1]\nprint(x)\nreturn x", specialists) == "code"
    assert detect_domain("The patient needs another dose", specialists) == "medical"


def test_chat_tokens_are_cut_and_rows_left_empty_are_dropped(tmp_path):
    marked = [("<start_of_turn>user\nHello there<end_of_turn>", "<|im_start|>assistant\nHi<|im_end|>")]
    hollow = [("What now?", "<eos>"), ("", "nothing was asked"), ("And now?", "  \n")]
    loaded = load_domains(campaign(tmp_path, {"law": marked + hollow + plain("law")}))["law"]
    assert (loaded.counts["stripped"], loaded.counts["empty"]) == (2, 3)
    rows = {row.prompt: row.completion for row in (*loaded.train, *loaded.validation, *loaded.sweep)}
    assert rows["Hello there"] == "Hi"


def test_one_row_said_a_thousand_times_is_one_row(tmp_path):
    config = campaign(tmp_path, {"law": [("What now?", "Wait.")] * 1000})
    with pytest.raises(DataError, match=r"domain 'law': 1 usable rows, .* add a source"):
        load_domains(config)


def test_the_same_files_give_the_same_fingerprint_and_one_changed_word_another(tmp_path):
    config = campaign(tmp_path, {"law": plain("law")})
    first = load_domains(config)["law"].fingerprint
    assert load_domains(config)["law"].fingerprint == first
    write_jsonl(tmp_path / "law.jsonl", reversed(plain("law")))
    assert load_domains(config)["law"].fingerprint == first
    write_jsonl(tmp_path / "law.jsonl", [*plain("law")[:-1], ("law topic 11", "about Law 11")])
    assert load_domains(config)["law"].fingerprint != first


def test_errors_name_the_domain_and_the_source(tmp_path):
    config = campaign(tmp_path, {"law": plain("law")})
    (tmp_path / "law.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    message = r"domain 'law', source jsonl .*law\.jsonl: no column 'prompt'; the row has \['answer', 'question'\]"
    with pytest.raises(DataError, match=message):
        load_domains(config)


def test_what_is_near_a_held_out_row_is_left_out_and_counted(tmp_path):
    facts = {f"{chr(65 + i % 26)}{170 + i}": f"thing{i * i}" for i in range(40)}
    pairs = [(f"What does code {code} stand for?", f"The {thing}.") for code, thing in facts.items()]
    pairs += [(f"Which mark is put on a {thing}?", f"{code}.") for code, thing in facts.items()]
    held_out = {"validation_rows": 6, "sweep_rows": 6}
    kept = load_domains(campaign(tmp_path, {"law": pairs}, near_duplicates=0.4, **held_out))["law"]
    every = load_domains(campaign(tmp_path, {"law": pairs}, **held_out))["law"]
    sizes = [sum(data.counts[split] for split in ("train", "validation", "sweep")) for data in (every, kept)]
    assert kept.counts["near_duplicates"] == sizes[0] - sizes[1] > 0

    def codes(*rows):
        return {re.search(r"\b[A-Z]\d\d+", f"{row.prompt} {row.completion}")[0] for row in rows}

    assert codes(*every.train) & codes(*every.validation, *every.sweep)
    assert not codes(*kept.train) & codes(*kept.validation, *kept.sweep)
    assert not codes(*kept.validation) & codes(*kept.sweep)
    alike = [(f"one{i} two{j}", "so") for i in range(2) for j in range(5)]
    with pytest.raises(DataError, match=r"domain 'law': every row of a split is nearly the same"):
        load_domains(campaign(tmp_path, {"law": alike}, near_duplicates=0.01))


def test_validation_rows_that_are_too_few_to_select_and_decide_are_refused(tmp_path):
    """Four were wanted; those that are nearly the same as a row of the sweep are gone."""
    facts = [(f"What does code {chr(65 + i)}{170 + i} stand for?", f"The thing{i * i}.") for i in range(20)]
    pairs = facts + [(f"Which mark is put on a thing{i * i}?", f"{chr(65 + i)}{170 + i}.") for i in range(20)]
    message = r"domain 'law': [1-3] of 4 validation rows .*; 4 are needed, .*raise data.validation_rows"
    with pytest.raises(DataError, match=message):
        load_domains(campaign(tmp_path, {"law": pairs}, near_duplicates=0.4, sweep_rows=20))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_conversations_load_and_what_cannot_be_used_is_counted_and_named(tmp_path):
    talk = [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Yes?"), ("user", "Why"))]
    rows = [{"prompt": p, "completion": c} for p, c in plain("law")]
    rows += [{"prompt": [*talk[:2], {"role": "user", "content": f"Why {i}?"}], "completion": "So"} for i in range(3)]
    rows += [
        {"prompt": {"a": 1}, "completion": "c"},
        {"prompt": "p", "completion": {"a": 1}},
        {"prompt": "q", "completion": {}},
    ]
    config = campaign(tmp_path, {"law": []}, near_duplicates=None)
    write_rows(tmp_path / "law.jsonl", rows)
    law = load_domains(config)["law"]
    assert law.counts["unusable"] == 3
    assert law.counts["unusable: prompt is a mapping where text is wanted"] == 1
    assert law.counts["unusable: completion is a mapping where text is wanted"] == 2
    loaded = [row for row in (*law.train, *law.validation, *law.sweep) if row.turns]
    assert sorted(row.turns[-1].content for row in loaded) == ["Why 0?", "Why 1?", "Why 2?"]
    assert not any("{" in row.prompt or "[" in row.prompt for row in loaded)


def test_a_source_with_nothing_usable_is_refused_with_the_reason(tmp_path):
    config = campaign(tmp_path, {"law": []})
    write_rows(tmp_path / "law.jsonl", [{"prompt": {"a": 1}, "completion": "c"}] * 2)
    with pytest.raises(DataError, match=r"none of its 2 rows can be used: prompt is a mapping .*\(2 rows\)"):
        load_domains(config)


def test_a_template_the_tokenizer_cannot_do_is_refused_before_anything_is_read(tmp_path):
    config = campaign(tmp_path, {"law": plain("law")}, template="chat")
    (tmp_path / "law.jsonl").unlink()
    with pytest.raises(DataError, match="has no chat template; use alpaca or plain"):
        load_domains(config, tiny_tokenizer())
