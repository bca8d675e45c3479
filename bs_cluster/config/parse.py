"""From YAML and command-line overrides to one valid ``CampaignConfig``, or to all that is wrong with it at once.

load_config("jobs/configs/embedded.yaml", ["training.num_workers=8", "domains.code.steps=200"])
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bs_cluster.config import yaml12
from bs_cluster.config.conflicts import conflicts, did_you_mean, problems, shown
from bs_cluster.config.local_paths import missing_inputs
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.config.section import Section
from bs_cluster.config.sources import BROKEN, SOURCE_KINDS
from bs_cluster.errors import ConfigError

Location = tuple[int | str, ...]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CampaignConfig:
    """Read a campaign from a YAML file and apply ``dotted.key=value`` overrides, left to right.

    Values are YAML. An item of a list is named by its index or, where it has one, by its ``name``. Nothing is
    coerced: unknown keys, wrong types, values out of range and combinations that cannot work are collected and
    raised together as one ConfigError, files that the campaign reads and that are not there among them.
    """
    data = _mapping(yaml12.parse(yaml12.read(path), str(path)), str(path))
    return _validate(data, _overridden(data, overrides), missing_inputs)


def parse_config(text: str, overrides: Sequence[str] = (), origin: str = "campaign") -> CampaignConfig:
    """``load_config`` for text at hand (a bundle's ``campaign.yaml``), whose inputs need not be here."""
    data = _mapping(yaml12.parse(text, origin), origin)
    return _validate(data, _overridden(data, overrides), lambda config: [])


def _mapping(data: Any, origin: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError([f"{origin}: should be a mapping that begins with campaign: <name>, not {shown(data)}"])
    return data


def _overridden(data: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """``data`` with the overrides set in it; the problems of those that could not be."""
    found: list[str] = []
    for override in overrides:
        try:
            _apply(data, override)
        except ConfigError as error:
            found += error.problems
    return found


def to_yaml(config: CampaignConfig) -> str:
    """The resolved config, every default written out; ``parse_config`` reads it back to an equal one."""
    return yaml12.dump(config.model_dump(mode="json"))


# ---- overrides


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in ``data``; sections not yet written are made on the way."""
    called = f"override {shown(override)}"
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError([f"{called}: should read dotted.key=value, as in training.num_workers=8"])
    value = yaml12.parse(text, called)
    target: Any = data
    for depth, part in enumerate(parts[:-1]):
        where = ".".join(parts[:depth])
        if isinstance(target, list):
            target = target[_item_index(target, part, where, called)]
        elif isinstance(target, dict):
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
        if not isinstance(target, dict | list):
            raise ConfigError([f"{called}: {where or part} is {shown(target)}, it has no keys below it"])
    if isinstance(target, list):
        target[_item_index(target, parts[-1], ".".join(parts[:-1]), called)] = value
    else:
        target[parts[-1]] = value


def _item_index(items: list[Any], part: str, where: str, called: str) -> int:
    names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
    for index, item in enumerate(items):
        if part == str(index) or (isinstance(item, dict) and item.get("name") == part):
            return index
    way_out = did_you_mean(part, names) or f"; it has {', '.join(names) or f'{len(items)} items'}"
    raise ConfigError([f"{called}: {where} has no item {part}{way_out}"])


# ---- validation


def _validate(data: dict[str, Any], found: list[str], more: Callable[[CampaignConfig], list[str]]) -> CampaignConfig:
    """The config, or a ConfigError with ``found``, every problem of ``data``, and what ``more`` finds."""
    try:
        config = _strictly(data)
    except ValidationError as error:
        details = list(_telling(error))
        found = found + [_worded(detail, data) for detail in details]
        found += _conflicts_of_the_rest(data, [detail["loc"] for detail in details], more)
        raise ConfigError(found) from None
    found = found + problems(config) + more(config)
    if found:
        raise ConfigError(found)
    return config


def _strictly(data: dict[str, Any]) -> CampaignConfig:
    # Through JSON, where pydantic's strict mode takes a list for a tuple and still refuses "8" and true for 8.
    return CampaignConfig.model_validate_json(json.dumps(data, default=str), strict=True)


def _telling(error: ValidationError) -> Iterator[ErrorDetails]:
    """Pydantic's errors less those that only echo another: a list is "too short" when its only item is wrong."""
    details = error.errors(include_url=False)
    for detail in details:
        detail["loc"] = _without_kind(detail["loc"])
    for detail in details:
        loc = detail["loc"]
        if not any(other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in details):
            yield detail


def _in_source(loc: Location) -> bool:
    return len(loc) > 3 and loc[0] == "domains" and loc[2] == "sources"


def _without_kind(loc: Location) -> Location:
    """Pydantic puts a source's kind into the path of what is wrong in it; users do not write it there."""
    return (*loc[:4], *loc[5:]) if _in_source(loc) and len(loc) > 4 else loc


# What takes the place of a required value that is wrong, so that the rest can still be looked at.
_SOURCE: dict[str, Any] = {"kind": "embedded", "name": "chat"}
_STAND_INS: dict[int | str, Any] = {"campaign": "unnamed", "name": "unnamed", "sources": [_SOURCE]}


def _conflicts_of_the_rest(
    data: dict[str, Any], wrong: list[Location], more: Callable[[CampaignConfig], list[str]]
) -> list[str]:
    """Cross-field problems among the values that are valid, so that the user meets them in the same run."""
    if any(loc[0] == "domains" and len(loc) < 3 for loc in wrong):  # a whole domain is missing from the picture
        return []
    rest = copy.deepcopy(data)
    for loc in reversed(wrong):  # reversed: items of one list go from the back
        _replace(rest, loc)
    try:
        config = _strictly(rest)
    except ValidationError:
        return []
    names = [_dotted(loc, rest) for loc in wrong]
    return [
        conflict.text
        for conflict in conflicts(config)
        if not any(_within(key, name) or _within(name, key) for key in conflict.keys for name in names)
    ] + more(config)


def _replace(data: Any, loc: Location) -> None:
    """Put the stand-in in the place of the value at ``loc``, or take the value out. A wrong source goes as a whole."""
    *path, last = loc[:4] if _in_source(loc) else loc
    for part in path:
        data = data[part]
    if _in_source(loc):
        data[last] = dict(_SOURCE)
    elif last in _STAND_INS:
        data[last] = copy.deepcopy(_STAND_INS[last])
    else:
        del data[last]


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(section + ".")


# ---- wording


def _worded(detail: ErrorDetails, data: dict[str, Any]) -> str:
    loc, value = detail["loc"], detail["input"]
    key, kind = _dotted(loc, data), detail["type"]
    source = _source_kind(loc, data)
    if kind == "union_tag_invalid":
        return _unknown_kind(f"{key}.kind", detail.get("ctx", {}).get("tag", ""))
    if kind == "union_tag_not_found":
        return f"{key}.kind: missing; there are {', '.join(SOURCE_KINDS)}"
    if kind == "extra_forbidden" and source:
        return f"{key} = {shown(value)}: {_foreign_to_source(str(loc[-1]), source)}"
    if kind == "extra_forbidden":
        return f"{key} = {shown(value)}: no such key{_nearest_key(loc, data)}"
    if kind == "missing":
        return f"{key}: missing; {f'a source of kind {source} needs it' if source else 'give it a value'}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        words = "should be a section of keys; fill it or leave it out"
    elif kind == "too_short":
        words = "should not be empty"
    elif kind == "tuple_type":
        words = "should be a list, as in [a, b]"
    elif kind == "string_pattern_mismatch":
        words = "should be lowercase letters, digits and underscores, at most 40, as in medical_qa"
    elif kind == "literal_error":
        words = _lowered(detail["msg"])
        if isinstance(value, str):
            allowed = detail.get("ctx", {}).get("expected", "")  # 'auto', 'exhaustive' or 'adaptive'
            words += did_you_mean(value, allowed.split("'")[1::2])
    else:
        words = _lowered(detail["msg"])
        if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
            words += "; write it without quotes" if not isinstance(_scalar(value), str) else ""
    return f"{key} = {shown(value)}: {words}"


def _source_kind(loc: Location, data: dict[str, Any]) -> str | None:
    """The kind of the source that a wrong key is in; None outside of sources."""
    return data["domains"][loc[1]]["sources"][loc[3]]["kind"] if _in_source(loc) and len(loc) > 4 else None


def _unknown_kind(key: str, kind: str) -> str:
    if kind in BROKEN:
        return f"{key} = {shown(kind)}: {BROKEN[kind]}"
    way_out = did_you_mean(kind, SOURCE_KINDS) or f"; there are {', '.join(SOURCE_KINDS)}"
    return f"{key} = {shown(kind)}: no such kind of source{way_out}"


def _foreign_to_source(word: str, kind: str) -> str:
    if any(word in section.model_fields for section in SOURCE_KINDS.values()):
        return f"means nothing to a source of kind {kind}; remove it, or change kind"
    own = list(SOURCE_KINDS[kind].model_fields)
    return f"no such key{did_you_mean(word, own) or '; the keys here are ' + ', '.join(own)}"


def _lowered(message: str) -> str:
    return message.removeprefix("Input ")[0].lower() + message.removeprefix("Input ")[1:]


def _scalar(text: str) -> Any:
    try:
        return yaml12.parse(text, "value")
    except ConfigError:
        return text


def _dotted(loc: Location, data: dict[str, Any]) -> str:
    """``("domains", 1, "steps")`` as ``domains.code.steps``; items without a usable name keep their index."""
    parts = [str(part) for part in loc]
    if len(loc) > 1 and loc[0] == "domains" and isinstance(loc[1], int):
        domain = data["domains"][loc[1]]
        if isinstance(domain, dict) and isinstance(domain.get("name"), str):
            parts[1] = domain["name"]
    return ".".join(parts)


def _nearest_key(loc: Location, data: dict[str, Any]) -> str:
    """The way out for an unknown key: the same key in another section, else the nearest sibling, else the list."""
    section: type[Section] = CampaignConfig
    for part in loc[:-1]:
        if isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation) or section
    word, parent = str(loc[-1]), _dotted(loc[:-1], data)
    prefix = f"{parent}." if parent else ""
    if elsewhere := [key for key in _keys(CampaignConfig) if key.rpartition(".")[2] == word]:
        return f"; did you mean {' or '.join(sorted(elsewhere, key=len))}?"
    if way_out := did_you_mean(prefix + word, [prefix + key for key in section.model_fields]):
        return way_out
    return f"; the keys here are {', '.join(section.model_fields)}"


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Every dotted key outside of sources and rounds, whose keys depend on their kind."""
    for name, field in section.model_fields.items():
        below = _section_of(field.annotation)
        if name in ("sources", "rounds") or below is None:
            yield prefix + name
        else:
            item = "" if field.annotation is below else "<item>."
            yield from _keys(below, f"{prefix}{name}.{item}")


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_of(arg))), None)
