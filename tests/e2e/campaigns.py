"""What a job left behind, read at once: later jobs on the same store must not change what a test looks at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import job

from bs_cluster.store import Store

DOMAINS = ("aa", "bb")


@dataclass(frozen=True)
class Outcome:
    """A job that ended, and what the store held right then."""

    job: job.Done
    config: Path
    store: Store
    refs: dict[str, bytes]
    report: dict[str, Any]


@dataclass(frozen=True)
class Stopped:
    """A job that a signal ended, and the status of each of MLflow's runs right then."""

    config: Path
    code: int
    log: str
    statuses: dict[str, str]


def outcome(done: job.Done, config: Path, uri: Path) -> Outcome:
    assert done.code == 0, f"{done.out}\n{done.err}"
    report = json.loads((uri / "tiny" / "report" / "report.json").read_text())
    return Outcome(done, config, Store(str(uri), "tiny"), refs(uri), report)


def refs(uri: Path) -> dict[str, bytes]:
    folder = uri / "tiny" / "refs"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json"))}
