"""The chat page: one file that loads nothing, and asks only what the server takes."""

import re
from pathlib import Path

import bs_cluster.serving
from bs_cluster.serving.protocol import ChatAsked, StreamOptions

PAGE = (Path(bs_cluster.serving.__file__).parent / "page.html").read_text()


def test_it_loads_nothing_from_anywhere():
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|\bimport\b|https?://""", PAGE) == []


def test_what_models_say_is_text_and_never_markup():
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", PAGE) == []


def test_it_asks_with_fields_that_are_served():
    (first,) = re.findall(r"const body = \{(.*)\};", PAGE)
    sent = {"model", *re.findall(r"(\w+):", re.sub(r"\[.*\]", "[]", first)), *re.findall(r"body\.(\w+) =", PAGE)}
    assert sent == {"model", "messages", "stream", "stream_options", "temperature", "max_tokens"}
    assert sent <= set(ChatAsked.model_fields)
    assert re.findall(r"stream_options = \{(\w+)", PAGE) == list(StreamOptions.model_fields)
    assert set(re.findall(r'call\("([^"]+)"', PAGE)) == {"v1/models", "v1/chat/completions"}
