"""What is written from the schema says what the schema says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bs_cluster.config import CampaignConfig, reference
from bs_cluster.config.section import Section
from bs_cluster.config.sources import BUILT_IN

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    ("file", "written", "option"),
    [
        ("config.md", reference.markdown, ""),
        ("config.schema.json", reference.json_schema, " --json-schema"),
    ],
)
def test_the_files_are_up_to_date(file: str, written, option: str):
    command = f"python -m bs_cluster.config.reference{option} > docs/{file}"
    assert (DOCS / file).read_text() == written().rstrip() + "\n", f"the schema changed: {command}"


def sections() -> list[type[Section]]:
    found = [*BUILT_IN, CampaignConfig]
    for section in found:
        for field in section.model_fields.values():
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(part, type) and issubclass(part, Section) and part not in found:
                    found.append(part)
    return found


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_section_and_every_field_is_described(section: type[Section]):
    assert (section.__doc__ or "").strip()
    silent = [name for name, field in section.model_fields.items() if not field.description and name != "kind"]
    assert silent == []


def test_every_setting_has_its_line():
    text = reference.markdown()
    for key in ("campaign", "domains.<name>.steps", "training.steps", "router.targets.kind", "store.uri"):
        assert f"\n| `{key}` |" in text
