"""Prompt and completion to token ids: the one place, for training, the sweep, the meta-router and serving alike.

Prompt and completion are tokenised apart, so that the boundary between them is where it will be in serving, where
the completion does not exist yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from bs_cluster.config.schema import DataSection
from bs_cluster.data.clean import clean_text
from bs_cluster.data.rows import Prompt, Row, Turn, plain_text
from bs_cluster.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = {
    # The paper's text has an Input section that it always leaves empty. Here a row's input is part of its prompt,
    # so this is Alpaca's own variant for that case.
    "alpaca": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{}\n\n### Response:\n"
    ),
    # Five tokens around the prompt instead of thirty: for small models and short rows.
    "plain": "{}\n\n### Response:\n",
}


MAX_CHARACTERS_PER_TOKEN = 256


@dataclass(frozen=True)
class EncodedRow:
    """A row as token ids: the prompt (bos and template included), then the completion and eos."""

    input_ids: tuple[int, ...]
    prompt_length: int
    id: str
    domain: str

    @property
    def completion_length(self) -> int:
        """Tokens that are learned and scored; at least 1."""
        return len(self.input_ids) - self.prompt_length


def prompt_text(prompt: str, template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt in its template, up to where the completion begins.

    ``template`` is a key of ``TEMPLATES`` or ``chat``, the tokenizer's own chat template. Raises DataError if the
    tokenizer has none.
    """
    if template != "chat":
        return TEMPLATES[template].format(prompt)
    return _conversation_text((Turn("user", prompt),), tokenizer)


def _require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            f"data.template is chat, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "use alpaca or plain, or an instruction-tuned base"
        )


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> list[int]:
    """Token ids of a prompt in ``data.template``: bos once (if the tokenizer has one), at most ``max_prompt_length``.

    A prompt too long loses text from its start, so that the template stays whole and the question, which usually
    ends a prompt, stays in. A conversation under ``chat`` loses its oldest turns first. Raises DataError if the
    template alone is too long.
    """
    if data.template == "chat" and not isinstance(prompt, str):
        for turns in _fewer_and_fewer(prompt):
            ids = _ids(_conversation_text(turns, tokenizer), tokenizer)
            if len(ids) <= data.max_prompt_length:
                return ids
        prompt = prompt[-1].content
    prompt = clean_text(plain_text(prompt), strip=data.strip_chat_tokens)
    # More than could fit, whatever the tokenizer: a prompt of megabytes costs no more than one that fills its room.
    prompt = prompt[-MAX_CHARACTERS_PER_TOKEN * data.max_prompt_length :]
    ids = _template_ids(prompt, tokenizer, data.template)
    if len(ids) <= data.max_prompt_length:
        return ids
    return _longest_fitting_end(prompt, tokenizer, data)


def _fewer_and_fewer(turns: tuple[Turn, ...]) -> Iterator[tuple[Turn, ...]]:
    """The conversation, then without its oldest exchange, and so on; the system's message stays with all of them."""
    system = tuple(turn for turn in turns[:1] if turn.role == "system")
    said = turns[len(system) :]
    for start in range(0, len(said), 2):
        yield (*system, *said[start:])


def _conversation_text(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> str:
    """The turns in the tokenizer's own template; what the system says opens the first question where it has no role."""
    _require_chat_template(tokenizer)
    messages = [asdict(turn) for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        if turns[0].role != "system":
            raise DataError(
                f"the chat template of {tokenizer.name_or_path!r} refuses a conversation: {error}"
            ) from error
        first = Turn("user", f"{turns[0].content}\n\n{turns[1].content}")
        return _conversation_text((first, *turns[2:]), tokenizer)


def encode_router_prompt(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, data: DataSection, max_prompt_length: int
) -> list[int]:
    """Token ids of a prompt as the meta-router sees it, in training and in serving: whole template, own limit."""
    return encode_prompt(prompt, tokenizer, data.model_copy(update={"max_prompt_length": max_prompt_length}))


def encode_rows(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: DataSection) -> list[EncodedRow]:
    """Every row as token ids, at most ``max_length`` of them. A completion that is cut has no eos: it did not end."""
    if not rows:
        return []
    assert data.max_prompt_length < data.max_length, "config lets no prompt take all of max_length"
    completions = tokenizer([row.completion for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
    encoded = []
    for row, completion in zip(rows, completions, strict=True):
        assert completion, f"row {row.id} has an empty completion; the loader drops those"
        prompt = encode_prompt(row.asked, tokenizer, data)
        ids = [*prompt, *completion, tokenizer.eos_token_id][: data.max_length]
        encoded.append(EncodedRow(tuple(ids), len(prompt), row.id, row.domain))
    return encoded


def _template_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    return _ids(prompt_text(prompt, template, tokenizer), tokenizer)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    bos = cast("int | None", tokenizer.bos_token_id)
    # Chat templates mostly write the bos themselves.
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _longest_fitting_end(prompt: str, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> list[int]:
    """Ids of the longest end of the prompt that fits its template, found by halving (any tokenizer can do that)."""
    fitting = _template_ids("", tokenizer, data.template)
    if len(fitting) > data.max_prompt_length:
        raise DataError(
            f"the template {data.template!r} alone takes {len(fitting)} tokens, data.max_prompt_length is "
            f"{data.max_prompt_length}; raise it or choose a shorter template"
        )
    too_early, fits = 0, len(prompt)  # cutting `fits` characters from the start is enough, `too_early` is not
    while fits - too_early > 1:
        middle = (too_early + fits) // 2
        ids = _template_ids(prompt[middle:].lstrip(), tokenizer, data.template)
        if len(ids) <= data.max_prompt_length:
            fits, fitting = middle, ids
        else:
            too_early = middle
    return fitting
