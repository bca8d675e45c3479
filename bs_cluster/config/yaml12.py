"""YAML as people read it: the YAML 1.2 core schema, on PyYAML.

PyYAML follows YAML 1.1, where ``1e-4`` is a string, ``no`` is false, ``12:30`` is 750 and a key given twice
silently keeps the last value. Here ``1e-4`` is a number, only ``true`` and ``false`` are booleans, ``12:30`` and
dates stay text, and a repeated key is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from bs_cluster.errors import ConfigError

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


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  PyYAML's own class attribute

    def construct_yaml_int(self, node: Any) -> int:
        return int(str(self.construct_scalar(node)))  # decimal always: 010 is ten, not eight


class _Dumper(yaml.SafeDumper):
    """Quotes what ``_Loader`` would otherwise read as something else."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  PyYAML's own class attribute


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        # "\0" stands for the empty scalar, which PyYAML files under "".
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), [c.replace("\0", "") for c in _first])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse(text: str, origin: str) -> Any:
    """The value that one YAML document holds. ``origin`` names the text in errors (a path, an override).

    Raises ConfigError when the text is no YAML, or names keys twice (all of them are listed).
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        repeated = list(_repeated_keys(node, "", set()))
        if repeated:
            raise ConfigError([f"{origin}: {line}" for line in repeated])
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError([f"{origin}: not valid YAML: {' '.join(str(error).split())}"]) from error
    finally:
        loader.dispose()


def dump(value: Any) -> str:
    """YAML text that ``parse`` reads back to an equal value; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


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
