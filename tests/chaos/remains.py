"""What a campaign left behind, without what no two runs share: times, and names that MLflow gave."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bs_cluster.records import canonical_json
from bs_cluster.store import Store

# ``reused`` counts the outcomes that a sweep found measured already, and those take no time.
TIMES = {"seconds", "timing", "rows_per_s", "sweep_rows_per_s", "reused"}
# Of a bundle's files, those whose bytes hold times, or the digest of one that does: told apart by their numbers.
TIMED = {"report.json", "report.md", "report.html", "certificate.json"}


@dataclass
class Remains:
    """``refs`` maps names to contents, ``order`` is that of their commits. ``torn`` tells what is not whole, or is left
    over and will not be collected. ``shown`` counts what MLflow shows."""

    refs: dict[str, str]
    order: list[str]
    torn: list[str]
    shown: Counter[str]


@dataclass
class Found:
    """What a disturbed campaign lacks, has twice, or has otherwise than the undisturbed one. All empty is as it must
    be."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)

    @property
    def none(self) -> bool:
        return not (self.lost or self.doubled or self.torn or self.differs)


def remains(store: Store, database: Path) -> Remains:
    seen = shown(database) if database.exists() else Counter()
    if torn := [f"{problem.object}: {problem.what}" for problem in store.verify().problems]:
        return Remains({}, [], torn, seen)
    refs = {entry.ref: entry.content for entry in store.history()}
    store.gc(older_than_s=-1)
    root = Path(store.uri) / store.campaign
    torn = [f"left over: {path.relative_to(root)}" for path in left_over(root)]
    torn += [f"collected: {problem.object}: {problem.what}" for problem in store.verify().problems]
    return Remains({name: told(store, name, content) for name, content in refs.items()}, list(refs), torn, seen)


def left_over(root: Path) -> Iterable[Path]:
    """What only a process that is at work may have there."""
    for folder in ("tmp", "rounds"):
        yield from (path for path in (root / folder).rglob("*") if path.is_file())
    yield from (root / "report").glob(".staging-*")


def told(store: Store, name: str, content: Mapping[str, Any]) -> str:
    """A ref's content, and for a bundle what its manifest and report say, less times."""
    whole: dict[str, Any] = dict(content)
    if name.startswith("refs/bundles/"):
        manifest = store.bundle(content["manifest"])
        whole = without_times(manifest.to_dict())
        whole["files"] = {entry.name: entry.sha256 for entry in manifest.files if entry.name not in TIMED}
        whole["report"] = without_times(json.loads(store.get_bytes(manifest.file("report.json").sha256)))
    if name.startswith("refs/promotions/"):
        whole = {key: value for key, value in content.items() if key != "manifest"}  # of the bundle: it holds times
    if name.startswith("refs/domains/"):
        whole = without_times(content)
        for outcome in whole["rounds"]:
            outcome.pop("reason")  # a coordinator that was started anew knows the numbers, not the words
    return canonical_json(whole).decode()


def without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [without_times(item) for item in value]
    return value


EVALUATIONS = (
    "SELECT run_uuid, value FROM tags WHERE key = 'bundle' AND run_uuid IN "
    "(SELECT run_uuid FROM tags WHERE key = 'kind' AND value = 'evaluation')"
)
ASSESSMENTS = (
    "SELECT a.name, t.client_request_id, a.value FROM assessments a JOIN trace_info t ON a.trace_id = t.request_id"
)
SPANS = "SELECT s.name, t.client_request_id FROM spans s JOIN trace_info t ON s.trace_id = t.request_id"


def shown(database: Path) -> Counter[str]:
    """Runs, points, versions, aliases, logged models and rows of bundles, by what they are of and not by number: read
    from the tables, so that nothing which a client would hide is missed."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:

        def rows(query: str) -> list[tuple[Any, ...]]:
            return connection.execute(query).fetchall()

        stack = dict(rows("SELECT run_uuid, value FROM tags WHERE key = 'stack'"))
        stack |= {run: f"of bundle {number}" for run, number in rows(EVALUATIONS)}
        orders = {
            (name, str(version)): value
            for name, version, value in rows("SELECT name, version, value FROM model_version_tags WHERE key = 'order'")
        }
        names = dict(rows("SELECT model_id, name FROM logged_models"))
        found = [
            f"run {stack.get(run, 'of the campaign')} {status}"
            for run, status in rows("SELECT run_uuid, status FROM runs")
        ]
        found += [
            f"point {stack.get(run, 'of the campaign')} {key} {step}"
            for run, key, step in rows("SELECT run_uuid, key, step FROM metrics")
            if key.rpartition("/")[2] not in TIMES
        ]
        found += [
            f"version {name} order {orders.get((name, str(version)))} of a manifest"
            for name, version in rows("SELECT name, version FROM model_versions")
        ]
        found += [
            f"alias {alias} of {name}: order {orders.get((name, str(version)))}"
            for name, alias, version in rows("SELECT name, alias, version FROM registered_model_aliases")
        ]
        found += [f"trace of {row}" for (row,) in rows("SELECT client_request_id FROM trace_info")]
        found += [f"{name} of {row}: {value}" for name, row, value in rows(ASSESSMENTS)]
        found += [f"span {name} of {row}" for name, row in rows(SPANS)]
        found += [
            f"model {names[model]} {status}" for model, status in rows("SELECT model_id, status FROM logged_models")
        ]
    return Counter(found)


def compare(disturbed: Remains, control: Remains) -> Found:
    found = Found(torn=list(disturbed.torn))
    if disturbed.torn:
        return found
    found.lost = [name for name in control.order if name not in disturbed.refs]
    found.doubled = [name for name in disturbed.order if name not in control.refs]
    found.differs = [
        difference(name, disturbed.refs[name], control.refs[name])
        for name in control.order
        if name in disturbed.refs and disturbed.refs[name] != control.refs[name]
    ]
    if not found.none:
        return found
    if disturbed.order != control.order:
        found.differs.append(f"the order of commits: {disturbed.order}")
    found.doubled += [f"MLflow: {what}, {count} more" for what, count in (disturbed.shown - control.shown).items()]
    found.differs += [f"MLflow lacks {what}, {count}" for what, count in (control.shown - disturbed.shown).items()]
    return found


def difference(name: str, disturbed: str, control: str) -> str:
    """The first places where two contents are not the same."""
    places: list[str] = []

    def walk(mine: Any, theirs: Any, place: str) -> None:
        if isinstance(mine, dict) and isinstance(theirs, dict):
            for key in sorted(mine.keys() | theirs.keys()):
                walk(mine.get(key), theirs.get(key), f"{place}.{key}")
        elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
            for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
                walk(one, other, f"{place}[{number}]")
        elif mine != theirs:
            places.append(f"{place}: {str(mine)[:60]} for {str(theirs)[:60]}")

    walk(json.loads(disturbed), json.loads(control), name)
    return "; ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
