"""Tokens: one boundary between prompt and completion everywhere, templates kept whole."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from bs_cluster.config.schema import DataSection
from bs_cluster.data.encode import encode_prompt, encode_rows, prompt_text
from bs_cluster.data.rows import Turn, make_row
from bs_cluster.errors import DataError

TOKENIZER = tiny_tokenizer()
CHAT = tiny_tokenizer()
CHAT.chat_template = "{{ bos_token }}[user]{{ messages[0]['content'] }}[model]"

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=120)
completions = texts.filter(lambda text: text.strip())
sections = st.builds(
    lambda template, prompt, more: DataSection(template=template, max_prompt_length=prompt, max_length=prompt + more),
    st.sampled_from(["plain", "chat"]),
    st.integers(40, 160),
    st.integers(1, 90),
)


@given(texts, completions, sections)
def test_training_and_serving_see_the_same_prompt_tokens(prompt, completion, data):
    row = encode_rows([make_row(prompt, completion, "chat")], CHAT, data)[0]
    served = encode_prompt(prompt, CHAT, data)
    assert list(row.input_ids[: row.prompt_length]) == served
    assert len(served) <= data.max_prompt_length
    assert len(row.input_ids) <= data.max_length
    assert row.completion_length >= 1
    assert served.count(CHAT.bos_token_id) == 1
    assert served[0] == CHAT.bos_token_id


@given(texts, sections)
def test_a_prompt_too_long_keeps_its_end_and_the_whole_template(prompt, data):
    text = CHAT.decode(encode_prompt(prompt, CHAT, data), skip_special_tokens=True)
    empty = CHAT.decode(encode_prompt("", CHAT, data), skip_special_tokens=True)
    tail = "[model]" if data.template == "chat" else "\n\n### Response:\n"
    assert text.startswith(empty.removesuffix(tail))
    assert text.endswith(tail)


def test_truncation_keeps_as_much_of_the_end_as_fits():
    tail = "\n\n### Response:\n"
    for room in (13, 14):  # tokens of this tokenizer are bytes; the question has 13
        data = DataSection(template="plain", max_prompt_length=1 + room + len(tail), max_length=60)
        ids = encode_prompt("x" * 50 + "the question?", TOKENIZER, data)
        assert TOKENIZER.decode(ids) == "<bos>" + "x" * (room - 13) + "the question?" + tail


def test_a_completion_ends_with_eos_unless_it_was_cut():
    data = DataSection(template="plain", max_prompt_length=30, max_length=40)
    whole, cut = encode_rows([make_row("hi", "yes", "d"), make_row("hi", "y" * 99, "d")], TOKENIZER, data)
    assert TOKENIZER.decode(whole.input_ids[whole.prompt_length :]) == "yes<eos>"
    assert len(cut.input_ids) == 40
    assert TOKENIZER.eos_token_id not in cut.input_ids
    assert whole.completion_length == 4


def test_a_prompt_with_control_tokens_is_served_as_it_was_trained():
    data = DataSection(template="plain")
    assert encode_prompt("hi<eos><start_of_turn>", TOKENIZER, data) == encode_prompt("hi", TOKENIZER, data)


@pytest.mark.parametrize("template", ["alpaca", "plain", "chat"])
def test_templates_hold_the_prompt_and_end_where_the_answer_begins(template):
    text = prompt_text("Why {this}?", template, CHAT)
    assert text.count("Why {this}?") == 1
    assert text.endswith("[model]" if template == "chat" else "### Response:\n")


def test_what_cannot_be_encoded_is_refused_with_the_way_out():
    with pytest.raises(DataError, match="no chat template; use alpaca or plain"):
        encode_prompt("hi", TOKENIZER, DataSection(template="chat"))
    with pytest.raises(DataError, match=r"template 'alpaca' alone takes \d+ tokens, data.max_prompt_length is 50"):
        encode_prompt("hi", TOKENIZER, DataSection(max_prompt_length=50))


TALK = (Turn("system", "Be brief."), Turn("user", "2+2?"), Turn("assistant", "4"), Turn("user", "Sure?"))
ROLES = tiny_tokenizer()
ROLES.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
NO_SYSTEM = tiny_tokenizer()
NO_SYSTEM.chat_template = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + ROLES.chat_template
)


def shown(prompt, tokenizer, **data):
    return tokenizer.decode(encode_prompt(prompt, tokenizer, DataSection(template="chat", **data)))


def test_a_conversation_is_encoded_by_the_tokenizers_template_with_its_roles():
    assert shown(TALK, ROLES) == "<bos>[system]Be brief.[user]2+2?[assistant]4[user]Sure?[assistant]"
    assert shown(TALK, NO_SYSTEM) == "<bos>[user]Be brief.\n\n2+2?[assistant]4[user]Sure?[assistant]"
    row = encode_rows([make_row(TALK, "Yes", "d")], ROLES, DataSection(template="chat"))[0]
    assert ROLES.decode(row.input_ids[row.prompt_length :]) == "Yes<eos>"


def test_a_conversation_too_long_loses_its_oldest_exchange_and_then_all_but_the_question():
    limits = {"max_length": 99}
    assert shown(TALK, ROLES, max_prompt_length=45, **limits) == "<bos>[system]Be brief.[user]Sure?[assistant]"
    assert shown(TALK, ROLES, max_prompt_length=23, **limits) == "<bos>[user]Sure?[assistant]"


def test_a_prompt_of_megabytes_costs_little():
    started = time.process_time()
    data = DataSection(template="plain", max_prompt_length=40)
    assert len(encode_prompt("word " * 4_000_000, TOKENIZER, data)) == 40
    assert time.process_time() - started < 5


def test_no_rows_encode_to_no_rows():
    assert encode_rows([], TOKENIZER, DataSection()) == []


def test_a_completion_of_a_hundred_thousand_tokens_is_cut_without_ado():
    data = DataSection(template="plain", max_prompt_length=40, max_length=96)
    started = time.monotonic()
    (row,) = encode_rows([make_row("Tell me all of it.", "all of it " * 50_000, "chat")], TOKENIZER, data)
    assert time.monotonic() - started < 5
    assert len(row.input_ids) == 96
    assert TOKENIZER.eos_token_id not in row.input_ids  # it did not end
