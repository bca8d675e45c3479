"""Text that grows: pieces together are the whole, and nothing shown is ever taken back."""

from hypothesis import example, given
from hypothesis import strategies as st
from tiny import EOS, tiny_tokenizer

from bs_cluster.serving.answer_text import AnswerText

TOKENIZER = tiny_tokenizer()  # a token a byte, so that é is two and € three
TEXTS = st.text("ab \né€", max_size=12)


def pieces_of(tokens: list[int], *stops: str) -> list[str]:
    """What each token let be shown, and what was held back to the end; up to a stop."""
    answer, pieces = AnswerText(TOKENIZER, stops), []
    for token in tokens:
        pieces.append(answer.add(token))
        if answer.stopped:
            return pieces
    return [*pieces, answer.rest()]


def tokens_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@given(st.lists(st.integers(4, 259), max_size=20))
def test_pieces_are_the_decoded_answer_without_blanks_around_it(tokens):
    """Whatever the bytes; most of these are no text at all."""
    whole = TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert "".join(pieces_of([*tokens, EOS])) == whole.strip()


def up_to_a_stop(text: str, stops: list[str]) -> str:
    for end in range(1, len(text) + 1):
        if met := [text[:end].find(stop) for stop in stops if stop and stop in text[:end]]:
            return text[: min(met)].strip()
    return text.strip()


@given(TEXTS, st.lists(st.text("ab \né", max_size=3), max_size=3))
@example("a b ", ["b "])
def test_pieces_end_before_the_first_stop_and_hold_none_of_it(text, stops):
    pieces = pieces_of(tokens_of(text), *stops)
    assert "".join(pieces) == up_to_a_stop(text, stops)


def test_a_piece_is_shown_as_soon_as_it_is_certain():
    assert pieces_of(tokens_of("a b")) == ["a", "", " b", ""]
    assert pieces_of(tokens_of("é!")) == ["", "é", "!", ""]
    assert pieces_of(tokens_of("abac"), "ac") == ["", "ab", "", ""]
