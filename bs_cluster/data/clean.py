"""Text as the model should see it: no foreign chat markup, no stray margins, and one form to compare prompts in."""

from __future__ import annotations

import re
import textwrap

# A turn marker takes its role word with it: cutting only "<|im_start|>" would leave a bare "user" in the text.
_ROLE = r"(?:[ \t]{0,8}(?:system|user|assistant|model|tool)[ \t]{0,8}(?=\n|<|$))?\n?"
_CHAT_TOKENS = re.compile(
    rf"<start_of_turn>{_ROLE}"
    rf"|<\|im_start\|>{_ROLE}"
    r"|<\|start_header_id\|>[^<\n]{0,20}<\|end_header_id\|>\n{0,4}"
    r"|</?(?:start|end)_of_(?:turn|conversation)>"
    r"|<\|(?:im_start|im_end|user|assistant|system|end|begin_of_text|end_of_text|endoftext|eot_id"
    r"|start_header_id|end_header_id)\|>"
    r"|<(?:bos|eos|pad)>"
    r"|\[/?INST\]"
    r"|<</?SYS>>",
    flags=re.IGNORECASE,
)
_PIECE = 1024
_LONGEST = 64  # characters of the longest match, the two headers with a name between them


def holds_chat_tokens(text: str) -> bool:
    """Whether any model family's chat template token is in the text."""
    return _CHAT_TOKENS.search(text) is not None


def strip_chat_tokens(text: str) -> str:
    """The text without chat template tokens, so that a stack learns a domain and not another model's markup.

    Cutting one token can join the halves of another, which goes too; linear in the text however deep that nests. Runs
    of spaces stay: collapsing them, as the published scripts do, destroys the indentation of code.
    """
    kept, at = "", 0  # the end of what is kept, and where the rest begins
    done: list[str] = []
    while match := _CHAT_TOKENS.search(text, at):
        kept, at = kept + text[at : match.start()], match.end()
        while joined := _across(kept[-_LONGEST:], text[at : at + _LONGEST + 1]):
            before, after = joined
            kept, at = kept[: len(kept) - before], at + after
            if len(kept) < _LONGEST and done:
                kept = done.pop() + kept
        while len(kept) > 2 * _PIECE:  # in pieces, so that taking one back costs no more than a piece
            done.append(kept[:_PIECE])
            kept = kept[_PIECE:]
    return "".join([*done, kept, text[at:]])


def _across(end: str, start: str) -> tuple[int, int] | None:
    """How many characters before and after a cut belong to a token that the cut has joined."""
    for match in _CHAT_TOKENS.finditer(end + start):
        if match.start() < len(end) < match.end():
            return len(end) - match.start(), match.end() - len(end)
    return None


def clean_text(text: str, *, strip: bool) -> str:
    """Text without common margin and outer white space; without chat tokens too if ``strip``.

    Idempotent, so that a training row and the same prompt met again in serving give the same tokens.
    """
    return textwrap.dedent(strip_chat_tokens(text) if strip else text).strip()


def normalise(text: str) -> str:
    """One form for texts that differ only in case and white space; what duplicates are found by."""
    return " ".join(text.casefold().split())
