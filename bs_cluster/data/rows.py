"""The two records everything else in ``data`` is about."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from bs_cluster.data.clean import normalise


@dataclass(frozen=True)
class Row:
    """One example. ``id`` names its content: the same words give the same id in any domain or file."""

    prompt: str
    completion: str
    domain: str
    id: str


def make_row(prompt: str, completion: str, domain: str) -> Row:
    """A row with its id, the first 16 hex digits of SHA-256 of the normalised prompt, a NUL and the completion."""
    content = f"{normalise(prompt)}\x00{completion}".encode()
    return Row(prompt=prompt, completion=completion, domain=domain, id=hashlib.sha256(content).hexdigest()[:16])


@dataclass(frozen=True)
class DomainData:
    """A domain's rows, ready to encode. The three splits share no prompt, with each other or with other domains.

    ``fingerprint`` is a SHA-256 (hex) over the ordered rows of each split. ``counts`` says what happened to the
    rows on the way: ``read``; ``empty`` (nothing to learn from); ``stripped`` (held chat template tokens, which
    were cut out); ``duplicates`` (prompt already taken); ``contaminated_out`` (moved to the domain they belong
    to); ``contaminated_in`` (received so); and the sizes ``train``, ``validation``, ``sweep``.
    """

    name: str
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    sweep: tuple[Row, ...]
    fingerprint: str
    counts: dict[str, int]
