"""YAML as people read it: the YAML 1.2 core schema, on PyYAML.

PyYAML follows YAML 1.1, where ``1e-4`` is a string, ``no`` is false, ``12:30`` is 750 and a key given twice
silently keeps the last value. Here ``1e-4`` is a number, only ``true`` and ``false`` are booleans, ``12:30`` and
dates stay text, and every repeated key is reported. A text that could only be an accident or an attack (too large,
not text, aliases that unfold without end) is refused before it costs anything.
"""

from __future__ import annotations

import itertools
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bs_cluster.errors import ConfigError

# A config has a few hundred values in a few kilobytes. PyYAML takes about two seconds for the largest text let in.
MAX_BYTES = 80_000
MAX_VALUES = 20_000  # once aliases are unfolded
MAX_DEPTH = 100  # of brackets; PyYAML's scanner is quadratic in it

_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)


class Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  PyYAML's own class attribute

    def construct_yaml_int(self, node: Any) -> int:
        text = str(self.construct_scalar(node))
        if len(text) > 40:  # Python itself refuses some thousands of digits, with a ValueError
            raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
        return int(text)  # decimal always: 010 is ten, not eight


class Dumper(yaml.SafeDumper):
    """Quotes what ``Loader`` would otherwise read as something else."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  PyYAML's own class attribute


for _tag, _pattern, _first in _SCALARS:
    for _class in (Loader, Dumper):
        # "\0" stands for the empty scalar, which PyYAML files under "".
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), [c.replace("\0", "") for c in _first])
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def read(path: str | Path) -> str:
    """The text of a YAML file. Raises ConfigError for what is no readable UTF-8 text of a config's size."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError([f"{path}: is no regular file; name a campaign's YAML file"])
        if status.st_size > MAX_BYTES:
            raise ConfigError([f"{path}: {status.st_size} bytes; a config has at most {MAX_BYTES}"])
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror}); name a campaign's YAML file"]) from error


def decode(data: bytes, origin: str) -> str:
    """YAML's bytes as text. Raises ConfigError when they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"{origin}: not UTF-8 text (byte {error.start}); save it as UTF-8"]) from error


def parse(text: str, origin: str) -> Any:
    """The value that one YAML document holds. ``origin`` names the text in errors (a path, an override).

    Raises ConfigError when the text is no YAML or beyond the limits above, or names keys twice (all are listed).
    """
    if len(text) > MAX_BYTES:
        raise ConfigError([f"{origin}: {len(text)} characters; a config has at most {MAX_BYTES}"])
    if _bracket_depth(text) > MAX_DEPTH:
        raise ConfigError([f"{origin}: nested too deep for a config"])
    try:
        loader = Loader(text)
    except yaml.YAMLError as error:  # control characters
        raise _no_yaml(origin, error) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_VALUES:
            raise ConfigError([f"{origin}: its aliases unfold to more than {MAX_VALUES} values; write fewer"])
        repeated = list(_repeated_keys(node, "", set()))
        if repeated:
            raise ConfigError([f"{origin}: {line}" for line in repeated])
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _no_yaml(origin, error) from error
    except RecursionError as error:
        raise ConfigError([f"{origin}: nested too deep for a config"]) from error
    finally:
        loader.dispose()


def _no_yaml(origin: str, error: yaml.YAMLError) -> ConfigError:
    return ConfigError([f"{origin}: not valid YAML: {' '.join(str(error).split())}"])


def _bracket_depth(text: str) -> int:
    steps = ({"[": 1, "{": 1, "]": -1, "}": -1}.get(letter, 0) for letter in text)
    return max(itertools.accumulate(steps), default=0)


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node unfolds to; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        below = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else ()
        parts = (part for item in below for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def dump(value: Any) -> str:
    """YAML text that ``parse`` reads back to an equal value; keys keep their order."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _repeated_keys(node: yaml.Node, path: str, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:  # an alias: its anchor has been looked at
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, f"{path}.{index}".lstrip("."), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = f"{path}.{key.value}".lstrip("."), key.start_mark.line + 1
            if name in lines:
                yield f"{name} is given twice, on lines {lines[name]} and {line}; keep one"
            lines.setdefault(name, line)
            yield from _repeated_keys(value, name, seen)
