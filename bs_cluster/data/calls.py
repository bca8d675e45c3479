"""Function calls as language models write them: JSON, alone, in a list or in marks, or Python's own call syntax.

    {"name": "weather", "arguments": {"city": "Rome"}}        [weather(city="Rome")]
    <tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>

Nothing is ever called, imported or evaluated beyond literals.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

MARKED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
FENCED = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)
ARGUMENTS = ("arguments", "parameters", "args")
LONGEST = 20_000  # characters; no answer is longer, and Python's parser is slow on what it cannot parse


class _Unreadable(ValueError):
    """Not a call in the form that was tried."""


class Call(NamedTuple):
    """A function's name and, by argument, the value as it is compared: words of a text, a number whatever its type."""

    name: str
    arguments: str


def calls_in(text: str) -> tuple[Call, ...]:
    """The calls of an answer, in an order of their own; none where it holds no call that can be read, or a part of it
    that should be one cannot. What stands in ``<tool_call>`` marks counts before a fenced block, that before all of the
    text, and its first line comes last."""
    if len(text) > LONGEST:
        return ()
    marked, fenced = MARKED.findall(text), FENCED.findall(text)
    for parts in (marked, fenced[:1], [text], text.strip().splitlines()[:1]):
        try:
            if found := [call for part in parts for call in _read(part.strip())]:
                return tuple(sorted(found))
        except _Unreadable:
            continue
    return ()


def _read(text: str) -> Iterable[Call]:
    try:
        return _from_json(json.loads(text))
    except (ValueError, RecursionError):
        return _from_python(text)


def _from_json(value: Any) -> list[Call]:
    if isinstance(value, list):
        return [call for one in value for call in _from_json(one)]
    if not isinstance(value, dict):
        raise _Unreadable
    value = value.get("function") if isinstance(value.get("function"), dict) else value  # as OpenAI's API has it
    given = next((value[key] for key in ARGUMENTS if key in value), {})
    if isinstance(given, str):
        given = json.loads(given or "{}")
    if not isinstance(value.get("name"), str) or not isinstance(given, dict):
        raise _Unreadable
    return [_call(value["name"], given)]


def _from_python(text: str) -> list[Call]:
    try:
        body = ast.parse(text, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_from_node(node) for node in nodes]
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise _Unreadable from error


def _from_node(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise _Unreadable
    placed = {str(place): ast.literal_eval(value) for place, value in enumerate(node.args)}
    named = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in node.keywords}
    return _call(ast.unparse(node.func), placed | named)


def _call(name: str, arguments: dict[Any, Any]) -> Call:
    return Call(name.strip(), json.dumps(_compared(arguments), sort_keys=True, default=str))


def _compared(value: Any) -> Any:
    match value:
        case bool() | None:
            return value
        case int() | float():
            return float(value) if abs(value) < sys.float_info.max else str(value)
        case str():
            return " ".join(value.casefold().split())
        case dict():
            return {str(key): _compared(of) for key, of in value.items()}
        case list() | tuple():
            return [_compared(of) for of in value]
    return str(value)
