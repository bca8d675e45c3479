"""Editing a campaign's file as its owner wrote it: text is put in, nothing that stands there is touched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bs_cluster.config import yaml12
from bs_cluster.errors import ConfigError


def with_domain(text: str, entry: Mapping[str, Any], origin: str) -> str:
    """The campaign's YAML ``text`` with one more item after the last of ``domains``; comments and order stay.

    Proved by reading it back: the result holds the same as before, and the entry. Raises ConfigError, with the lines
    to add by hand, where ``domains`` is not written as a list of ``- name:`` items.
    """
    before = yaml12.parse(text, origin)
    place = _end_of_domains(text)
    if place is not None:
        lines, (line, indent) = text.splitlines(keepends=True), place
        if not lines[line].endswith("\n"):
            lines[line] += "\n"
        edited = "".join([*lines[: line + 1], _item(entry, indent), *lines[line + 1 :]])
        if yaml12.parse(edited, origin) == {**before, "domains": [*before["domains"], dict(entry)]}:
            return edited
    raise ConfigError(
        [f"{origin}: domains is not a list with an item a line; add this to it by hand:\n{_item(entry, 2)}"]
    )


def without_domain(text: str, name: str, origin: str) -> str:
    """The campaign's YAML ``text`` without the item of ``domains`` called ``name``, and without that name in the
    ``after`` of others; comments outside of it and order stay.

    Proved by reading it back. Raises ConfigError, with what to take out by hand, where it is written in another way.
    """
    before = yaml12.parse(text, origin)
    wanted = {**before, "domains": [_not_after(item, name) for item in before["domains"] if item["name"] != name]}
    lines = text.splitlines(keepends=True)
    for item in reversed(_items(text)):
        settings = {key.value: (key, value) for key, value in item.value}
        if settings["name"][1].value == name:
            del lines[item.start_mark.line : _last_line(item) + 1]
        elif "after" in settings and any(leaf.value == name for leaf in settings["after"][1].value):
            _take_out(lines, *settings["after"], name)
    edited = "".join(lines)
    if _reads_as(edited, wanted, origin):
        return edited
    raise ConfigError(
        [
            f"{origin}: take the domain {name} out of domains by hand, and its name out of every after, then run the "
            "same again: domains is not a list with an item a line"
        ]
    )


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all, with the rights that the file has."""
    target = path.resolve()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, target.stat().st_mode)
    os.replace(name, target)


def _not_after(item: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An item of ``domains`` that comes after one less; without ``after`` where that was the only one."""
    left = [other for other in item.get("after", ()) if other != name]
    return {key: value for key, value in {**item, "after": left}.items() if key != "after" or left}


def _take_out(lines: list[str], key: yaml.Node, after: yaml.CollectionNode, name: str) -> None:
    """``name`` out of a list of names, written either way; the whole key where nothing is left in it."""
    leaves = after.value
    kept = [leaf.value for leaf in leaves if leaf.value != name]
    first, last = key.start_mark.line, _last_line(after)
    if not kept:
        del lines[first : last + 1]
    elif after.flow_style and first == last:
        line, start, end = lines[first], after.start_mark.column, after.end_mark.column
        lines[first] = f"{line[:start]}[{', '.join(kept)}]{line[end:]}"
    elif not after.flow_style:
        for leaf in reversed([leaf for leaf in leaves if leaf.value == name]):
            del lines[leaf.start_mark.line]


def _reads_as(text: str, wanted: Mapping[str, Any], origin: str) -> bool:
    try:
        return yaml12.parse(text, origin) == wanted
    except ConfigError:
        return False


def _item(entry: Mapping[str, Any], indent: int) -> str:
    """``entry`` as an item of a block list; what is in its lists stands on one line."""
    pairs = [
        f"{key}: {yaml.dump(value, Dumper=yaml12.Dumper, default_flow_style=True, width=10_000, sort_keys=False)}"
        if isinstance(value, list)
        else yaml12.dump({key: value})
        for key, value in entry.items()
    ]
    margin = " " * indent
    return "".join(f"{margin}{'  ' if number else '- '}{pair}" for number, pair in enumerate(pairs))


def _end_of_domains(text: str) -> tuple[int, int] | None:
    """The line (from 0) on which the last domain ends, and the column of its dash; None where there is no such list."""
    found = _domains(text)
    return None if found is None else (_last_line(found), found.start_mark.column)


def _domains(text: str) -> yaml.SequenceNode | None:
    """The list of domains, where it is one with an item a line."""
    root = yaml.compose(text, Loader=yaml12.Loader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = next((value for key, value in pairs if key.value == "domains"), None)
    if not isinstance(found, yaml.SequenceNode) or found.flow_style or not found.value:
        return None
    return found


def _items(text: str) -> list[yaml.MappingNode]:
    found = _domains(text)
    return [] if found is None else [item for item in found.value if isinstance(item, yaml.MappingNode)]


def _last_line(node: yaml.Node) -> int:
    """A block's own end mark lies at what follows it, behind comments; its last leaf's lies where it ends."""
    if isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return node.end_mark.line - 1
    return node.end_mark.line
