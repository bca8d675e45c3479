"""What no commit needs any more: blobs that nothing leads to, and interrupted writes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bs_cluster.errors import NotInStoreError
from bs_cluster.records import Record, canonical_json
from bs_cluster.store.blobs import BLOBS, DIGEST, blob_name
from bs_cluster.store.committed import Committed
from bs_cluster.store.filesystem import TEMPORARY, Files

_DIGESTS = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True)
class Collected(Record):
    """What was deleted: digests of blobs, their size in bytes together, names of temporary files."""

    blobs: tuple[str, ...]
    bytes: int
    temporary: tuple[str, ...]


def live_digests(committed: Committed) -> set[str]:
    """Every digest that a ref or a manifest names, whatever for. Raises ``IntegrityError`` where one is unreadable."""
    texts = [canonical_json(content) for content in committed.refs().values()]
    texts += [canonical_json(manifest.to_dict()) for _, manifest in committed.every_stack()]
    texts += [canonical_json(manifest.to_dict()) for _, _, manifest in committed.bundles()]
    return {found.decode() for text in texts for found in _DIGESTS.findall(text)}


def collect_garbage(committed: Committed, files: Files, older_than_s: float) -> Collected:
    live = live_digests(committed)
    dead, size = [], 0
    for name in files.stamps(BLOBS):
        digest = name.rpartition("/")[2]
        is_blob = DIGEST.fullmatch(digest) is not None and name == blob_name(digest)
        if is_blob and digest not in live and _older(files, name, older_than_s):
            size += files.size(name) or 0
            files.delete(name)
            dead.append(digest)
    return Collected(tuple(dead), size, tuple(collect_temporary(files, older_than_s)))


def collect_temporary(files: Files, older_than_s: float) -> list[str]:
    stray = [name for name in files.stamps(TEMPORARY) if _older(files, name, older_than_s)]
    for name in stray:
        files.delete(name)
    return stray


def _older(files: Files, name: str, seconds: float) -> bool:
    """Whether a listed file has been there so long. Another process may have removed it meanwhile: it has not."""
    try:
        return files.age_seconds(name) >= seconds
    except NotInStoreError:
        return False
