"""Refs: small JSON files that are created once. Whether one exists is what the history is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bs_cluster.errors import IntegrityError, RefExistsError
from bs_cluster.records import Record, StackRef, canonical_json, sha256_hex
from bs_cluster.store.filesystem import Files

CAMPAIGN = "refs/campaign.json"
STACKS = "refs/stacks"
DOMAINS = "refs/domains"
BUNDLES = "refs/bundles"


def stack_ref(ref: StackRef) -> str:
    return f"{STACKS}/{ref.stack.domain}/{ref.stack.round}.json"


def domain_ref(domain: str) -> str:
    return f"{DOMAINS}/{domain}.json"


def bundle_ref(number: int) -> str:
    return f"{BUNDLES}/{number}.json"


def encode(record: Record, what: str) -> bytes:
    """Canonical JSON of a record. Raises ``IntegrityError`` when a number in it is NaN or infinite."""
    try:
        return canonical_json(record.to_dict())
    except ValueError as error:
        raise IntegrityError(f"{what} holds NaN or infinity, which a record cannot: {record}") from error


class Refs:
    """The refs of one campaign, by name (``refs/stacks/chat/1.json``)."""

    def __init__(self, files: Files):
        self._files = files

    def names(self, folder: str) -> list[str]:
        return self._files.names(folder)

    def exists(self, name: str) -> bool:
        return self._files.size(name) is not None

    def read(self, name: str) -> dict[str, Any]:
        """Raises ``NotInStoreError``; ``IntegrityError`` when the file is not a JSON object."""
        with self._files.open(name) as stream:
            data = stream.read()
        try:
            content = json.loads(data)
        except ValueError as error:
            raise IntegrityError(f"{name} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise IntegrityError(f"{name} is damaged: it holds a {type(content).__name__}, not a JSON object")
        return content

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


def _digest(content: Mapping[str, Any]) -> str:
    """What tells two contents of a ref apart: the manifest it points to, or its own digest."""
    return content.get("manifest") or sha256_hex(canonical_json(content))
