"""Cleaning, normalising, and raw rows of every known format."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.config.sources import BUILT_IN_FORMATS
from bs_cluster.data.clean import clean_text, holds_chat_tokens, normalise, strip_chat_tokens
from bs_cluster.data.formats import FORMATS, UnusableRow, convert
from bs_cluster.data.rows import Turn, make_row, plain_text
from bs_cluster.errors import DataError

CHAT_TOKENS = [
    "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<|im_start|>", "<|im_end|>", "<|user|>",
    "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]", "<<SYS>>",
]  # fmt: skip


@pytest.mark.parametrize("token", CHAT_TOKENS)
def test_every_chat_token_is_found_and_cut(token):
    text = f"before {token}after"
    assert holds_chat_tokens(text)
    assert clean_text(text, strip=True) == "before after"
    assert clean_text(text, strip=False) == text


@pytest.mark.parametrize(
    "marked",
    [
        "<bos><start_of_turn>user\nHow are you?<end_of_turn>\n",
        "<|im_start|>user\nHow are you?<|im_end|>",
        "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>",
        "[INST] How are you? [/INST]",
    ],
)
def test_a_turn_marker_takes_its_role_word_with_it(marked):
    assert clean_text(marked, strip=True) == "How are you?"


def test_a_role_word_that_begins_the_text_itself_stays():
    assert clean_text("<|im_start|>user stories are short", strip=True) == "user stories are short"


def test_indentation_of_code_survives():
    code = "def f(x):\n    if x:\n        return  1"
    assert clean_text(f"<|im_start|>assistant\n{code}<|im_end|>", strip=True) == code


pieces = st.lists(st.sampled_from([*CHAT_TOKENS, "<|im_", "start|>", "<b", "os>", "user", "\n", "  ", "x = 1"]))


@given(pieces.map("".join))
def test_cleaning_leaves_no_token_and_changes_nothing_the_second_time(text):
    once = clean_text(text, strip=True)
    assert not holds_chat_tokens(strip_chat_tokens(text))
    assert clean_text(once, strip=True) == once


@given(st.text())
def test_cleaning_any_text_twice_is_cleaning_it_once(text):
    once = clean_text(text, strip=True)
    assert clean_text(once, strip=True) == once


@pytest.mark.parametrize(
    "text", ["<|im_" * 20_000 + "start|>" * 20_000, "x" * 500_000 + "<b" * 30_000 + "os>" * 30_000]
)
def test_nested_halves_of_tokens_go_in_linear_time(text):
    started = time.process_time()
    assert strip_chat_tokens(text).strip("x") == ""
    assert time.process_time() - started < 5


def test_prompts_that_differ_in_case_and_space_are_the_same():
    assert normalise("  What\tIS\n it? ") == normalise("what is it?")


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]
SHARE_TURNS = [{"from": "User", "value": "2+2?"}, {"from": "Assistant", "value": "4"}]
THOUGHT = "<|begin_of_thought|>\n\nAdd them.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>4<|end_of_solution|>"
THOUGHT_TURNS = [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": THOUGHT}]
THOUGHT_PAIR = ("2+2?", "<think>\nAdd them.\n</think>\n\n4")
OPTIONS = {"A": "Ampicillin", "B": "Ceftriaxone", "C": "Doxycycline", "D": "Nitrofurantoin"}

EXAMPLES = [
    ("prompt_completion", {"prompt": "2+2?", "completion": "4"}, ("2+2?", "4")),
    ("alpaca", {"instruction": "Add.", "input": "2 2", "output": "4"}, ("Add.\n\n2 2", "4")),
    ("alpaca", {"instruction": "Add 2 and 2.", "input": "", "output": "4"}, ("Add 2 and 2.", "4")),
    ("dolly", {"instruction": "Who?", "context": "Ann won.", "response": "Ann", "category": "qa"},
     ("Ann won.\n\nWho?", "Ann")),
    ("gsm8k", {"question": "2+2?", "answer": "He has 2+2=<<2+2=4>>4.\n#### 4"}, ("2+2?", "He has 2+2=4.\n#### 4")),
    ("messages", {"messages": TURNS},
     ((Turn("system", "Be brief."), Turn("user", "2+2?"), Turn("assistant", "4"), Turn("user", "Sure?")), "Yes")),
    ("prompt_completion", {"prompt": TURNS[1:4], "completion": TURNS[4:]},
     ((Turn("user", "2+2?"), Turn("assistant", "4"), Turn("user", "Sure?")), "Yes")),
    ("prompt_completion", {"prompt": TURNS[:2], "completion": "4"},
     ((Turn("system", "Be brief."), Turn("user", "2+2?")), "4")),
    ("messages", {"conversations": SHARE_TURNS}, ("2+2?", "4")),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, TURNS[2]]},
     ("2+2?", "4")),
    ("messages", {"messages": TURNS[1:2]}, ("2+2?", "")),
    ("daring_anteater", {"system": "", "mask": "User", "conversations": SHARE_TURNS}, ("2+2?", "4")),
    ("ultrafeedback_sft", {"prompt": "2+2?", "chosen": TURNS[1:3], "rejected": []}, ("2+2?", "4")),
    ("nemotron_v2", {"uuid": "1", "category": "math", "messages": TURNS[:3]}, ("2+2?", "4")),
    ("nemotron_v2", {"input": TURNS[:2], "output": "4"}, ("2+2?", "4")),
    ("nemotron_v2", {"input": "2+2?", "output": "4"}, ("2+2?", "4")),
    ("openthoughts", {"system": "Think.", "conversations": THOUGHT_TURNS}, THOUGHT_PAIR),
    ("sky_t1", {"system": "Think.", "conversations": THOUGHT_TURNS}, THOUGHT_PAIR),
    ("opencodereasoning", {"input": "Sort.", "output": "<think>…</think>", "solution": "sorted(x)"},
     ("Sort.", "sorted(x)")),
    ("opencodereasoning", {"input": "Sort.", "output": "sorted(x)"}, ("Sort.", "sorted(x)")),
    ("openmath", {"problem": "2+2?", "generated_solution": "\\boxed{4}", "expected_answer": "4"},
     ("2+2?", "\\boxed{4}")),
    ("numina_cot", {"problem": "2+2?", "solution": "4", "source": "x", "messages": TURNS}, ("2+2?", "4")),
    ("medqa", {"question": "Best drug?", "answer": "Nitrofurantoin", "options": OPTIONS, "answer_idx": "D"},
     ("Best drug?\n\nA. Ampicillin\nB. Ceftriaxone\nC. Doxycycline\nD. Nitrofurantoin", "D. Nitrofurantoin")),
    ("medical_reasoning", {"Question": "Why?", "Complex_CoT": "Hmm.", "Response": "So."},
     ("Why?", "<think>\nHmm.\n</think>\n\nSo.")),
    ("medical_reasoning", {"Question": "Why?", "Complex_CoT": "Hmm.", "Response": ""}, ("Why?", "")),
    ("pubmedqa", {"question": "Does it?", "context": {"contexts": ["We tried.", "It did."], "labels": []},
                  "long_answer": "It does.", "final_decision": "yes"},
     ("We tried.\n\nIt did.\n\nDoes it?", "It does.\n\nAnswer: yes")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "pair"), EXAMPLES)
def test_each_format_turns_a_real_row_into_prompt_and_completion(name, raw, pair):
    prompt, completion = convert(raw, name)
    if not isinstance(prompt, str) and len(prompt) == 1:
        prompt = prompt[0].content
    assert (prompt.strip() if isinstance(prompt, str) else prompt, completion.strip()) == pair


USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("prompt_completion", {"prompt": {"text": "Hi"}, "completion": "Hello"}, "prompt is a mapping"),
        ("prompt_completion", {"prompt": "Hi", "completion": {"text": "Hello"}}, "completion is a mapping"),
        ("prompt_completion", {"prompt": ["Hi"], "completion": "Hello"}, "not in the shape"),
        ("alpaca", {"instruction": "Hi", "input": ["x"], "output": "Hello"}, "input is a list"),
        ("gsm8k", {"question": "Hi", "answer": ["Hello"]}, "answer is a list"),
        ("messages", {"messages": "Hi"}, "not in the shape"),
        ("messages", {"messages": 7}, "not in the shape"),
        ("messages", {"messages": [USER, {"role": "tool", "content": "7"}, ANSWER]}, "a turn of role tool"),
        ("messages", {"messages": [ANSWER]}, "no user's message"),
        ("messages", {"messages": [USER, {"role": "system", "content": "Be brief."}, ANSWER]}, "no user's message"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "holds image_url"),
        ("medqa", {"question": "q", "answer": "a", "options": "b", "answer_idx": "A"}, "not in the shape"),
    ],
)
def test_what_no_text_can_be_made_of_is_unusable_and_never_its_python_text(name, raw, reason):
    with pytest.raises(UnusableRow, match=reason):
        convert(raw, name)


def test_neighbours_of_one_role_are_one_turn_and_what_follows_the_last_answer_is_left():
    turns = [USER, {"role": "user", "content": "there"}, ANSWER, USER]
    assert convert({"messages": turns}, "messages") == ((Turn("user", "Hi\n\nthere"),), "Hello")


def test_a_prompt_of_several_turns_as_text():
    system, question = Turn("system", "Be brief."), Turn("user", "Hi")
    assert plain_text((question,)) == "Hi"
    assert plain_text((system, question)) == "Be brief.\n\nHi"
    talk = (system, question, Turn("assistant", "Hello"), Turn("user", "Bye"))
    assert plain_text(talk) == "Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Bye"
    assert make_row(talk, "x", "d").turns == talk
    assert make_row((question,), "x", "d") == make_row("Hi", "x", "d")


def test_every_format_has_an_example():
    assert {name for name, _, _ in EXAMPLES} == set(FORMATS) == set(BUILT_IN_FORMATS)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_missing_column_is_named_with_those_there_are(name):
    with pytest.raises(DataError, match=r"no column '.*the row has \['body'\]"):
        convert({"body": "x"}, name)


def test_an_unknown_format_suggests_the_one_meant():
    with pytest.raises(DataError, match="unknown format 'alpacca'; did you mean 'alpaca'"):
        convert({}, "alpacca")
