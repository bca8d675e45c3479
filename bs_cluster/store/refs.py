"""Refs: small JSON files that are created once. Whether one exists is what the history is."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from bs_cluster import __version__
from bs_cluster.errors import IntegrityError, RefExistsError
from bs_cluster.records import SCHEMA_VERSION, Record, StackId, StackRef, canonical_json, sha256_hex
from bs_cluster.store.filesystem import Files

R = TypeVar("R", bound=Record)

REFS = "refs"
CAMPAIGN = "refs/campaign.json"
STACKS = "refs/stacks"
DOMAINS = "refs/domains"
BUNDLES = "refs/bundles"
PROMOTIONS = "refs/promotions"
RETIREMENTS = "refs/retirements"
ERASURES = "refs/erasures"
EPOCHS = "refs/epochs"
_NAME, _NUMBER = r"[a-z0-9][a-z0-9_]{0,39}", r"[1-9][0-9]{0,8}"
_COMMITTED = re.compile(
    rf"{CAMPAIGN}|({STACKS}|{DOMAINS})/{_NAME}/{_NUMBER}\.json"
    rf"|({BUNDLES}|{PROMOTIONS}|{RETIREMENTS}|{ERASURES})/{_NUMBER}\.json"
)
_EPOCH = re.compile(rf"{EPOCHS}/{_NUMBER}\.json")
LARGEST_RECORD = 64 * 2**20  # bytes; what is larger is no record of ours and is not read


def stack_ref(ref: StackRef) -> str:
    return named(f"{STACKS}/{ref.stack.domain}/{ref.stack.round}.json")


def domain_ref(domain: str, number: int) -> str:
    """Of the domain's closing ``number``, from 1: it closes again where rounds were retired."""
    return named(f"{DOMAINS}/{domain}/{number}.json")


def bundle_ref(number: int) -> str:
    return named(f"{BUNDLES}/{number}.json")


def promotion_ref(number: int) -> str:
    return named(f"{PROMOTIONS}/{number}.json")


def retirement_ref(number: int) -> str:
    return named(f"{RETIREMENTS}/{number}.json")


def erasure_ref(number: int) -> str:
    return named(f"{ERASURES}/{number}.json")


def epoch_ref(number: int) -> str:
    return f"{EPOCHS}/{number}.json"


def named(name: str) -> str:
    """``name``, which is a ref's. Raises ``IntegrityError`` for any other, before it becomes a path."""
    if not is_committed(name):
        raise IntegrityError(
            f"{name!r} is no name of a ref; a domain's name has small letters, digits and _, a number starts at 1"
        )
    return name


def is_committed(name: str) -> bool:
    """Whether ``name`` is one under which a commit can lie."""
    return _COMMITTED.fullmatch(name) is not None


def is_epoch(name: str) -> bool:
    return _EPOCH.fullmatch(name) is not None


def number_of(name: str) -> int:
    """The number that ends a ref's name."""
    return int(name.rpartition("/")[2].removesuffix(".json"))


def domain_of(name: str) -> str:
    """The domain that the ref of a stack or of a closing is of."""
    return name.split("/")[2]


def stack_of(name: str) -> StackId:
    """The stack whose ref is called ``name``."""
    return StackId(domain_of(name), number_of(name))


def encode(record: Record, what: str) -> bytes:
    """Canonical JSON of a record. Raises ``IntegrityError`` when a number in it is NaN or infinite."""
    try:
        return canonical_json(record.to_dict())
    except ValueError as error:
        raise IntegrityError(f"{what} holds NaN or infinity, which a record cannot: {record}") from error


def decode(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises ``IntegrityError`` for anything else, with ``what`` it was to be."""
    try:
        content = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{what} is damaged: it holds a {type(content).__name__}, not a JSON object")
    return content


def record(kind: type[R], content: Mapping[str, Any], what: str) -> R:
    """``content`` as a record. Raises ``IntegrityError`` for other keys or types and for a schema not of this version
    of bs_cluster."""
    versioned = "schema_version" in kind.__dataclass_fields__  # type: ignore[attr-defined]
    if versioned and (found := content.get("schema_version")) != SCHEMA_VERSION:
        raise IntegrityError(
            f"{what} has schema version {found!r}, bs_cluster {__version__} reads {SCHEMA_VERSION}; "
            "use the version of bs_cluster that wrote it"
        )
    try:
        return kind.from_dict(content)
    except IntegrityError as error:
        raise IntegrityError(f"{what}: {error}") from error


class Refs:
    """The refs of one campaign, by name (``refs/stacks/chat/1.json``)."""

    def __init__(self, files: Files):
        self._files = files
        self._read: dict[str, tuple[Hashable, dict[str, Any]]] = {}  # by stamp: a ref is parsed once

    def names(self, folder: str = REFS) -> list[str]:
        """The refs under ``folder`` under which a commit can lie; stray files are none."""
        return [name for name in self._files.stamps(folder) if is_committed(name)]

    def all(self) -> dict[str, dict[str, Any]]:
        """Every ref's content by name."""
        found: dict[str, tuple[Hashable, dict[str, Any]]] = {}
        for name, stamp in self._files.stamps(REFS).items():
            if is_committed(name):
                held = self._read.get(name)
                found[name] = held if held is not None and held[0] == stamp else (stamp, self.read(name))
        self._read = found
        return {name: content for name, (_, content) in found.items()}

    def exists(self, name: str) -> bool:
        return self._files.size(name) is not None

    def read(self, name: str) -> dict[str, Any]:
        """Raises ``NotInStoreError``; ``IntegrityError`` when the file is not a JSON object."""
        return decode(read_record(self._files, name), name)

    def has(self, name: str, content: Mapping[str, Any]) -> bool:
        """Whether the ref exists with this content. Raises ``RefExistsError`` when it exists with another."""
        if not self.exists(name):
            return False
        held = self.read(name)
        if held != json.loads(canonical_json(content)):
            raise RefExistsError(
                f"{name} exists with {_digest(held)}, offered was {_digest(content)}; "
                "committed history is never rewritten: carry on from it, or name another campaign"
            )
        return True

    def create(self, name: str, content: Mapping[str, Any]) -> None:
        """Create the ref. Losing a race to an equal one is success; to another raises ``RefExistsError``."""
        if not self._files.create(name, canonical_json(content)):
            self.has(name, content)

    def create_or_keep(self, name: str, content: Mapping[str, Any]) -> None:
        """Create the ref, or leave it as another has created it."""
        self._files.create(name, canonical_json(content))


def read_record(files: Files, name: str) -> bytes:
    """A small file. Raises ``NotInStoreError``; ``IntegrityError`` when it is too large to be a record."""
    if (size := files.size(name)) is not None and size > LARGEST_RECORD:
        raise IntegrityError(f"{name} has {size} bytes, no record has more than {LARGEST_RECORD}; move it away")
    return files.read(name)


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which no record can")


def _digest(content: Mapping[str, Any]) -> str:
    """What tells two contents of a ref apart: the manifest it points to, or its own digest."""
    manifest = content.get("manifest")
    return manifest if isinstance(manifest, str) else sha256_hex(canonical_json(content))
