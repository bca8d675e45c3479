"""The schema as people and editors read it: ``docs/config.md`` and ``docs/config.schema.json``.

python -m bs_cluster.config.reference > docs/config.md
python -m bs_cluster.config.reference --json-schema > docs/config.schema.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from bs_cluster.config.rounds import RoundSection
from bs_cluster.config.schema import CampaignConfig, DomainSection
from bs_cluster.config.section import Section
from bs_cluster.config.sources import BUILT_IN_FORMATS, SOURCE_KINDS

HEAD = """# Settings

Written by `python -m bs_cluster.config.reference` from `bs_cluster/config/schema.py`; change it there. A campaign is
one YAML file of these sections (`jobs/configs/` has some). Every setting is also an override on the command line, by
its dotted name: `training.steps=200`, `domains.code.steps=200`. An unknown key, a wrong type or a value out of range is
told before anything starts, all of them at once.

Editors with a YAML language server complete and check a file that begins with

    # yaml-language-server: $schema=../../docs/config.schema.json
"""


def markdown() -> str:
    """The whole reference, a table a section."""
    sections = {
        name: field.annotation
        for name, field in CampaignConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    parts = [HEAD]
    top = {"campaign", "seed", "domains"}
    parts += _table("The campaign", "", CampaignConfig, only=top)
    parts += _table("domains", "domains.<name>", DomainSection)
    parts += _table("domains: a round", "domains.<name>.rounds.<index>", RoundSection)
    for kind, section in SOURCE_KINDS.items():
        parts += _table(f"domains: a source of kind {kind}", "domains.<name>.sources.<index>", section)
    parts += [
        f"`format` is one of {', '.join(f'`{name}`' for name in BUILT_IN_FORMATS)}, or one that an installed package "
        "adds (`bs_cluster/config/plugins.py`).\n"
    ]
    for name, section in sections.items():
        parts += _section_tables(name, section)
    return "\n".join(parts)


def _section_tables(name: str, section: type[Section]) -> Iterator[str]:
    yield from _table(name, name, section)
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _section_tables(f"{name}.{key}", field.annotation)


def _table(title: str, prefix: str, section: type[Section], only: set[str] | None = None) -> Iterator[str]:
    schema = section.model_json_schema()
    yield f"## {title}\n"
    if only is None:
        yield f"{(section.__doc__ or '').strip().splitlines()[0]}\n"
    yield "| key | value | default | what it is |"
    yield "|---|---|---|---|"
    for name, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        if (
            (only is not None and name not in only)
            or nested
            or (name == "kind" and "const" in schema["properties"][name])
        ):
            continue
        key = f"{prefix}.{name}" if prefix else name
        default = "required" if field.is_required() else f"`{_shown(field.get_default(call_default_factory=True))}`"
        yield f"| `{key}` | {_values(schema['properties'][name])} | {default} | {field.description} |"
    yield ""


def _shown(value: Any) -> str:
    return json.dumps(value, default=_in_json).replace('"', "") if value != "" else '""'


def _in_json(value: Any) -> Any:
    return value.model_dump(exclude_defaults=True) if isinstance(value, Section) else list(value)


def _values(schema: Mapping[str, Any]) -> str:
    """What may stand there, in words: ``whole number, 1 to 4096``, ``nf4 or none``."""
    if "anyOf" in schema:
        return " or ".join(_values(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _bounds(schema)
    if kind == "array":
        return f"list of {'sections' if '$ref' in schema['items'] or 'oneOf' in schema['items'] else 'texts'}"
    names = {"string": "text", "boolean": "`true` or `false`", "object": "mapping", "null": "`null`"}
    return names.get(kind or "", "section")


def _bounds(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    if schema["type"] == "integer" and above is not None:
        low, above = above + 1, None
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    named = {"at least": low, "above": above, "at most": high, "below": below}
    words = [
        f"{word} {value:,g}" if isinstance(value, float) else f"{word} {value:,}"
        for word, value in named.items()
        if value is not None
    ]
    return ", " + ", ".join(words) if words else ""


def json_schema() -> str:
    """JSON Schema of a campaign file, for editors."""
    schema = CampaignConfig.model_json_schema()
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1, ensure_ascii=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the reference of all settings.")
    parser.add_argument("--json-schema", action="store_true", help="JSON Schema for editors in place of Markdown")
    sys.stdout.write((json_schema() if parser.parse_args().json_schema else markdown()).rstrip() + "\n")


if __name__ == "__main__":
    main()
