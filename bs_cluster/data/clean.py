"""Text as the model should see it: no foreign chat markup, no stray margins, and one form to compare prompts in."""

from __future__ import annotations

import re
import textwrap

# A turn marker takes its role word with it: cutting only "<|im_start|>" would leave a bare "user" in the text.
_ROLE = r"(?:[ \t]*(?:system|user|assistant|model|tool)[ \t]*(?=\n|<|$))?\n?"
_CHAT_TOKENS = re.compile(
    rf"<start_of_turn>{_ROLE}"
    rf"|<\|im_start\|>{_ROLE}"
    r"|<\|start_header_id\|>[^<\n]{0,20}<\|end_header_id\|>\n*"
    r"|</?(?:start|end)_of_(?:turn|conversation)>"
    r"|<\|(?:im_start|im_end|user|assistant|system|end|begin_of_text|end_of_text|endoftext|eot_id"
    r"|start_header_id|end_header_id)\|>"
    r"|<(?:bos|eos|pad)>"
    r"|\[/?INST\]"
    r"|<</?SYS>>",
    flags=re.IGNORECASE,
)


def holds_chat_tokens(text: str) -> bool:
    """Whether any model family's chat template token is in the text."""
    return _CHAT_TOKENS.search(text) is not None


def strip_chat_tokens(text: str) -> str:
    """The text without chat template tokens, so that a stack learns a domain and not another model's markup.

    Repeats until none is left, since cutting one token can join the halves of another. Runs of spaces stay:
    collapsing them, as the published scripts do, destroys the indentation of code.
    """
    while holds_chat_tokens(text):
        text = _CHAT_TOKENS.sub("", text)
    return text


def clean_text(text: str, *, strip: bool) -> str:
    """Text without common margin and outer white space; without chat tokens too if ``strip``.

    Idempotent, so that a training row and the same prompt met again in serving give the same tokens.
    """
    return textwrap.dedent(strip_chat_tokens(text) if strip else text).strip()


def normalise(text: str) -> str:
    """One form for texts that differ only in case and white space; what duplicates are found by."""
    return " ".join(text.casefold().split())
