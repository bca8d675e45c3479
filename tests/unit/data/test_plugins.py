"""Formats and sources from outside: a package with entry points is enough. Each test runs its own interpreter, as the
entry points are read when ``bs_cluster.config`` is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULE = '''
from typing import Literal

from pydantic import Field

from bs_cluster.config.sources import SourceSection
from bs_cluster.data.readers import raw_rows


class LedgerSource(SourceSection):
    """Rows of a ledger."""

    kind: Literal["ledger"]
    entries: int = Field(description="How many there are.")


@raw_rows.register
def _(source: LedgerSource, seed: int):
    for number in range(source.entries):
        yield {"prompt": f"entry {number}", "completion": f"{seed + number}"}


def court(raw):
    return raw["case"], raw["verdict"]
'''
PRELUDE = """
from bs_cluster.config import parse_config
from bs_cluster.data.formats import convert
from bs_cluster.data.readers import read_source
from bs_cluster.errors import ConfigError

def config(source):
    return parse_config("campaign: a\\ndomains: [{name: law, sources: [" + source + "]}]")
"""


@pytest.fixture
def run(tmp_path):
    """Runs code in an interpreter that has a package of these entry points on its path; returns what it prints."""

    def run(code: str, entry_points: str, module: str = MODULE) -> str:
        (tmp_path / "outside.py").write_text(module)
        metadata = tmp_path / "outside-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points)
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + code], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


SOURCES = "[bs_cluster.sources]\nledger = outside:LedgerSource\n"


def test_a_kind_of_source(run):
    code = """
domain = config("{kind: ledger, entries: 3, take: 2}").domains[0]
print([row["completion"] for row in read_source(domain.sources[0], seed=40)])
try:
    config("{kind: ledger, entires: 3}")
except ConfigError as error:
    print(*error.problems, sep="\\n")
"""
    rows, *lines = run(code, SOURCES).splitlines()
    assert rows == "['40', '41']"
    assert [line.partition(":")[0] for line in lines] == [
        "domains.law.sources.0.entries",
        "domains.law.sources.0.entires = 3",
    ]
    assert "did you mean entries?" in lines[1]


def test_a_row_format(run):
    code = """
source = config("{kind: hub, name: x/y, format: court}").domains[0].sources[0]
print(convert({"case": "who?", "verdict": "they"}, source.row_format))
"""
    assert run(code, "[bs_cluster.formats]\ncourt = outside:court\n") == "('who?', 'they')"


def test_a_source_that_cannot_be_imported_is_told_to_those_who_want_it_and_to_nobody_else(run):
    code = """
print(config("{kind: embedded, name: chat}").campaign)
try:
    config("{kind: ledger, entries: 3}")
except ConfigError as error:
    print(*error.problems)
"""
    name, line = run(code, SOURCES, module="import a_library_that_is_not_there").splitlines()
    assert name == "a"
    assert "domains.law.sources.0.kind" in line
    assert "No module named 'a_library_that_is_not_there'" in line
    assert "mend or uninstall outside" in line
