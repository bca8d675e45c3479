"""The records everything else in ``data`` is about."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from bs_cluster.data.clean import normalise


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


Prompt = str | tuple[Turn, ...]


class Check(NamedTuple):
    """How an answer to a row is told right from wrong: a verifier (``bs_cluster.data.verify``) by its name, and what it
    needs beside prompt and reference, such as unit tests."""

    verifier: str
    key: str = ""


UNCHECKED = Check("none")


class Sample(NamedTuple):
    """A prompt, its completion, and how another answer to it is checked."""

    prompt: str
    completion: str
    check: Check = UNCHECKED


@dataclass(frozen=True)
class Question:
    """A held-out row in words: what is asked, the answer that its source gives, how another one is checked."""

    prompt: str
    reference: str
    check: Check


@dataclass(frozen=True)
class Row:
    """One example. ``id`` names its content: the same words give the same id in any domain or file.

    ``turns`` is the prompt of a conversation of more than one message, which a chat template wants; ``prompt`` is
    its text then, for every other template and for comparing rows. Only the completion is learned.
    """

    prompt: str
    completion: str
    domain: str
    id: str
    turns: tuple[Turn, ...] = ()
    check: Check = UNCHECKED

    @property
    def asked(self) -> Prompt:
        """What is encoded: the turns if there are any, else the prompt."""
        return self.turns or self.prompt

    @property
    def question(self) -> Question:
        return Question(self.prompt, self.completion, self.check)


def make_row(prompt: Prompt, completion: str, domain: str, check: Check = UNCHECKED) -> Row:
    """A row with its id, the first 16 hex digits of SHA-256 of the normalised prompt, a NUL and the completion."""
    text = plain_text(prompt)
    content = f"{normalise(text)}\x00{completion}".encode()
    turns = () if isinstance(prompt, str) or len(prompt) == 1 else prompt
    return Row(text, completion, domain, hashlib.sha256(content).hexdigest()[:16], turns, check)


def plain_text(prompt: Prompt) -> str:
    """A prompt as one text: a lone question as it is; where there was talk before, each turn names its speaker."""
    if isinstance(prompt, str):
        return prompt
    said = [turn for turn in prompt if turn.role != "system"]
    names = {"system": "", "user": "User: ", "assistant": "Assistant: "} if len(said) > 1 else {}
    return "\n\n".join(names.get(turn.role, "") + turn.content for turn in prompt)


@dataclass(frozen=True)
class DomainData:
    """A domain's rows, ready to encode. The three splits share no prompt, with each other or with other domains.

    ``fingerprint`` is a SHA-256 (hex) over the ordered rows of each split. ``counts`` says what happened to the
    rows on the way: ``read``; ``unusable`` (and ``unusable: reason`` for each kind of it); ``empty`` (nothing to
    learn from); ``stripped`` (held chat template tokens, which were cut out); ``duplicates`` (prompt already
    taken); ``contaminated_out`` (moved to the domain they belong to); ``contaminated_in`` (received so);
    ``near_duplicates`` (left out: too like a held-out row); and the sizes ``train``, ``validation``, ``sweep``.
    """

    name: str
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    sweep: tuple[Row, ...]
    fingerprint: str
    counts: dict[str, int]
