"""An answer's text while it grows: shown as soon as nothing that follows can change it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

HALF_A_CHARACTER = "\ufffd"  # what a decoder gives for bytes that are no whole character yet


class AnswerText:
    """Tokens come in, pieces of text go out; together they are the decoded answer without blanks around it, up to the
    first of ``stops``, as ``greedy_answers`` gives it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._shown = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be shown now and could not before. Sets ``stopped`` where a stop was met: no more is to follow."""
        self._tokens.append(token)
        text = self._text()
        if met := [place for stop in self._stops if (place := text.find(stop)) >= 0]:
            self.stopped = True
            return self._show(text[: min(met)].strip())
        return self._show(text[: self._certain(text)].lstrip())

    def rest(self) -> str:
        """What was held back, at the end of an answer that met no stop."""
        return self._show(self._text().strip())

    def _text(self) -> str:
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)  # type: ignore[return-value]

    def _certain(self, text: str) -> int:
        """Characters that stay: not half of one, not blanks that may be the last, not what may begin a stop."""
        text = text.rstrip(HALF_A_CHARACTER)
        begun = [len(text) - n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return len(text[: min([len(text), *begun])].rstrip())  # blanks before a stop go with it

    def _show(self, text: str) -> str:
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece
