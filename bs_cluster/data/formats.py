"""How a raw row of each known data set becomes ``(prompt, completion)``.

A converter returns the pair: the completion as text, the prompt as text or, of a conversation, as its turns. An empty
string says that the row has nothing to learn from (a conversation without an answer); ``UnusableRow`` says why this
format can make nothing of the row. The loader counts both. A missing column is an error.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from bs_cluster.config import plugins
from bs_cluster.data.rows import Prompt, Turn
from bs_cluster.errors import DataError

RawRow = Mapping[str, Any]
Pair = tuple[Prompt, str]
Converter = Callable[[RawRow], Pair]

USER_ROLES = frozenset({"user", "human"})
ASSISTANT_ROLES = frozenset({"assistant", "gpt", "model", "chatgpt"})
SYSTEM_ROLES = frozenset({"system", "developer"})


class UnusableRow(DataError):
    """A row that its format can make nothing of. The message is the reason, the same for all rows of that kind."""


def convert(raw: RawRow, format_name: str) -> Pair:
    """The raw row's prompt and completion by the named format.

    Raises DataError for an unknown name or column, UnusableRow for a row of another shape.
    """
    make_pair = converter(format_name)
    try:
        return make_pair(raw)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise UnusableRow(f"not in the shape of format {format_name}") from error


@functools.cache
def converter(format_name: str) -> Converter:
    """The format's function: built in, else from an installed package. Raises DataError for an unknown name."""
    if format_name in FORMATS:
        return FORMATS[format_name]
    if format_name in plugins.found(plugins.FORMATS):
        return cast("Converter", plugins.load(plugins.FORMATS, format_name))
    known = [*FORMATS, *plugins.found(plugins.FORMATS)]
    close = difflib.get_close_matches(format_name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known formats: {', '.join(sorted(known))}"
    raise DataError(f"unknown format {format_name!r}; {hint}")


def column(raw: RawRow, *names: str) -> Any:
    """The value of the first of ``names`` that the row has. Raises DataError with the columns there are."""
    for name in names:
        if name in raw:
            return raw[name]
    wanted = " or ".join(repr(name) for name in names)
    raise DataError(f"no column {wanted}; the row has {sorted(raw)}; choose the format that fits these columns")


def text(raw: RawRow, *names: str) -> str:
    """The same as text; a null becomes the empty string. Raises UnusableRow for a list or a mapping."""
    return _as_text(column(raw, *names), names[0])


def _as_text(value: Any, name: str) -> str:
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
        raise UnusableRow(f"{name} is a {'mapping' if isinstance(value, Mapping) else 'list'} where text is wanted")
    return "" if value is None else str(value)


def joined(*parts: str) -> str:
    """Parts that are not empty, with a blank line between."""
    return "\n\n".join(part.strip() for part in parts if part.strip())


def turns_of(messages: Any) -> list[Turn]:
    """A conversation's turns, neighbours of one role joined. Takes ``role``/``content`` and ``from``/``value``."""
    turns: list[Turn] = []
    for message in messages or ():
        role = _role(str(message.get("role") or message.get("from") or "").lower())
        content = _content(message.get("content", message.get("value")))
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, joined(turns[-1].content, content))
        else:
            turns.append(Turn(role, content))
    return turns


def _role(name: str) -> str:
    for role, names in {"user": USER_ROLES, "assistant": ASSISTANT_ROLES, "system": SYSTEM_ROLES}.items():
        if name in names:
            return role
    raise UnusableRow(f"a turn of role {name[:40] or 'nobody'}")


def first_turn(messages: Any) -> Pair:
    """First user message of a conversation and the answer to it, as the paper takes its data sets."""
    turns = turns_of(messages)
    asked = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if asked is None:
        return "", ""
    answer = next((turn.content for turn in turns[asked:] if turn.role == "assistant"), "")
    return turns[asked].content, answer


def conversation(messages: Any) -> Pair:
    """The last answer of a conversation, and all that was said before it as its prompt.

    Earlier answers are read and not learned: a row has one completion.
    """
    turns = turns_of(messages)
    answered = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not answered:
        return tuple(turns), ""
    asked = tuple(turns[: answered[-1]])
    if not asked or asked[-1].role != "user":
        raise UnusableRow("an answer that no user's message comes before")
    if any(turn.role == "system" for turn in asked[1:]):
        raise UnusableRow("a system message in the middle of a conversation")
    return asked, turns[answered[-1]].content


def _content(value: Any) -> str:
    """Message content as text; some sets nest it as ``[{"type": "text", "text": …}]``."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(_content(part) for part in value)
    if isinstance(value, Mapping):
        if value.get("type", "text") != "text" or not isinstance(value.get("text"), str):
            raise UnusableRow(f"a message that holds {str(value.get('type', 'no text'))[:40]}")
        return value["text"]
    return "" if value is None else str(value)


_THOUGHT = re.compile(r"<\|begin_of_thought\|>\s*(.*?)\s*<\|end_of_thought\|>", flags=re.DOTALL)
_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")


def _think_tags(pair: Pair) -> Pair:
    """Sky-T1's own thought markers, which no tokenizer knows, as the common ``<think>`` block."""
    prompt, completion = pair
    completion = _THOUGHT.sub(lambda match: f"<think>\n{match[1]}\n</think>", completion)
    return prompt, _SOLUTION.sub("", completion)


def prompt_completion(raw: RawRow) -> Pair:
    """Text, or TRL's conversational form: lists of messages in both columns, or in ``prompt`` alone."""
    prompt, completion = column(raw, "prompt"), column(raw, "completion")
    if not _is_list(prompt) and not _is_list(completion):
        return text(raw, "prompt"), text(raw, "completion")
    asked = prompt if _is_list(prompt) else [{"role": "user", "content": text(raw, "prompt")}]
    answer = completion if _is_list(completion) else [{"role": "assistant", "content": text(raw, "completion")}]
    return conversation([*asked, *answer])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def alpaca(raw: RawRow) -> Pair:
    """``instruction``, ``input`` (may be absent or empty), ``output``."""
    return joined(text(raw, "instruction"), _as_text(raw.get("input"), "input")), text(raw, "output")


def dolly(raw: RawRow) -> Pair:
    """databricks-dolly-15k. The context goes first: a prompt too long loses its start, never its question."""
    return joined(_as_text(raw.get("context"), "context"), text(raw, "instruction")), text(raw, "response")


def gsm8k(raw: RawRow) -> Pair:
    """openai/gsm8k, without the calculator annotations ``<<48/2=24>>``."""
    return text(raw, "question"), re.sub(r"<<[^<>]*>>", "", text(raw, "answer"))


def messages(raw: RawRow) -> Pair:
    """OpenAI's ``messages`` or ShareGPT's ``conversations``: the last answer to all that was said before."""
    return conversation(column(raw, "messages", "conversations"))


def daring_anteater(raw: RawRow) -> Pair:
    """nvidia/Daring-Anteater: first user turn and its answer."""
    return first_turn(column(raw, "conversations"))


def ultrafeedback_sft(raw: RawRow) -> Pair:
    """HuggingFaceH4/ultrafeedback_binarized: the preferred conversation, ``chosen``."""
    return first_turn(column(raw, "chosen"))


def nemotron_v2(raw: RawRow) -> Pair:
    """nvidia Nemotron post-training sets: ``messages``, or ``input`` (text or messages) with ``output``."""
    if "messages" in raw:
        return first_turn(raw["messages"])
    prompt = column(raw, "input", "messages")
    return prompt if isinstance(prompt, str) else first_turn(prompt)[0], text(raw, "output")


def openthoughts(raw: RawRow) -> Pair:
    """open-thoughts/OpenThoughts-114k: ``conversations`` with thought and solution markers."""
    return _think_tags(first_turn(column(raw, "conversations", "messages")))


def opencodereasoning(raw: RawRow) -> Pair:
    """nvidia/OpenCodeReasoning: ``input``, and ``solution`` before ``output`` as in the paper.

    ``output`` is a reasoning trace of thousands of tokens that ``max_length`` would cut before any code.
    """
    return text(raw, "input"), str(raw.get("solution") or "") or text(raw, "output")


def openmath(raw: RawRow) -> Pair:
    """nvidia/OpenMathReasoning, splits ``cot`` and ``tool_integrated``."""
    return text(raw, "problem"), text(raw, "generated_solution")


def numina_cot(raw: RawRow) -> Pair:
    """AI-MO/NuminaMath-CoT."""
    return text(raw, "problem"), text(raw, "solution")


def medqa(raw: RawRow) -> Pair:
    """GBaker/MedQA-USMLE-4-options. The options belong to the question; only the answer is learned."""
    options, answer = column(raw, "options"), text(raw, "answer")
    letter = next((key for key, option in options.items() if option == answer), None)
    listed = "\n".join(f"{key}. {option}" for key, option in options.items() if option is not None)
    return joined(text(raw, "question"), listed), f"{letter}. {answer}" if letter else answer


def medical_reasoning(raw: RawRow) -> Pair:
    """FreedomIntelligence/medical-o1-reasoning-SFT: the chain of thought in a ``<think>`` block, then the response."""
    thought, response = text(raw, "Complex_CoT").strip(), text(raw, "Response").strip()
    return text(raw, "Question"), f"<think>\n{thought}\n</think>\n\n{response}" if thought and response else response


def pubmedqa(raw: RawRow) -> Pair:
    """qiaojin/PubMedQA (pqa_labeled): abstract then question; the long answer, then yes, no or maybe."""
    context = raw.get("context") or {}
    passages = context.get("contexts") or () if isinstance(context, Mapping) else [str(context)]
    decision = str(raw.get("final_decision") or "")
    answer = joined(text(raw, "long_answer"), f"Answer: {decision}" if decision else "")
    return joined(*passages, text(raw, "question")), answer


def sky_t1(raw: RawRow) -> Pair:
    """NovaSky-AI/Sky-T1_data_17k: ``conversations`` with thought and solution markers."""
    return _think_tags(first_turn(column(raw, "conversations", "messages")))


FORMATS: dict[str, Converter] = {
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "daring_anteater": daring_anteater,
    "dolly": dolly,
    "gsm8k": gsm8k,
    "medical_reasoning": medical_reasoning,
    "medqa": medqa,
    "messages": messages,
    "nemotron_v2": nemotron_v2,
    "numina_cot": numina_cot,
    "opencodereasoning": opencodereasoning,
    "openmath": openmath,
    "openthoughts": openthoughts,
    "pubmedqa": pubmedqa,
    "sky_t1": sky_t1,
    "ultrafeedback_sft": ultrafeedback_sft,
}
