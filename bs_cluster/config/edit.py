"""Editing a campaign's file as its owner wrote it: text is put in, nothing that stands there is touched."""

from __future__ import annotations

from collections.abc import Mapping
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
    root = yaml.compose(text, Loader=yaml12.Loader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = next((value for key, value in pairs if key.value == "domains"), None)
    if not isinstance(found, yaml.SequenceNode) or found.flow_style or not found.value:
        return None
    return _last_line(found), found.start_mark.column


def _last_line(node: yaml.Node) -> int:
    """A block's own end mark lies at what follows it, behind comments; its last leaf's lies where it ends."""
    if isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return node.end_mark.line - 1
    return node.end_mark.line
