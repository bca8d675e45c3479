"""Which rows are trained on, which validate, which teach the meta-router. Decided by content, never by position.

Rows are ranked by a hash of their normalised prompt. The lowest ``sweep_rows`` are the sweep, the next
``validation_rows`` validate, and training takes from the top, up to ``train_rows``. The order of files and of rows
in them changes nothing. What adding rows can do:

- Never: turn a training row into a held-out one. No stack is ever scored on a row that it learned from.
- Sometimes: push old held-out rows up, from sweep to validation and from validation out, about as many as their
  share of the rows added. With a ``train_rows`` cap that the old rows already filled they leave the data
  altogether; without one they join training.

Removing rows gives no guarantee. The fingerprint tells one split from another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from bs_cluster.config.schema import DataSection
from bs_cluster.data.clean import normalise
from bs_cluster.data.rows import Row
from bs_cluster.errors import DataError

Split = tuple[tuple[Row, ...], tuple[Row, ...], tuple[Row, ...]]


def prompt_rank(row: Row) -> str:
    """Where a row stands among others: SHA-256 (hex) of its normalised prompt."""
    return hashlib.sha256(normalise(row.prompt).encode()).hexdigest()


def split_rows(domain: str, own: Sequence[Row], moved_in: Sequence[Row], data: DataSection) -> Split:
    """``(train, validation, sweep)``, each in rank order. Rows moved in from other domains only train.

    Raises DataError when the domain's own rows do not fill validation and sweep and leave one to train on.
    """
    held_out = data.validation_rows + data.sweep_rows
    if len(own) <= held_out:
        raise DataError(
            f"domain {domain!r}: {len(own)} usable rows, but validation_rows={data.validation_rows} and "
            f"sweep_rows={data.sweep_rows} hold out {held_out} and training needs at least 1; "
            "add a source, raise its take, or lower data.validation_rows and data.sweep_rows"
        )
    ranked = sorted(own, key=prompt_rank)
    sweep, validation = ranked[: data.sweep_rows], ranked[data.sweep_rows : held_out]
    train = sorted([*ranked[held_out:], *moved_in], key=prompt_rank)
    return tuple(train[-data.train_rows :] if data.train_rows else train), tuple(validation), tuple(sweep)


def fingerprint(**splits: Iterable[Row]) -> str:
    """SHA-256 (hex) over every split's name and its rows in order: id and exact text."""
    digest = hashlib.sha256()
    for name, rows in splits.items():
        digest.update(f"\x1d{name}".encode())
        for row in rows:
            digest.update(f"\x1e{row.id}\x1f{row.prompt}\x1f{row.completion}".encode())
    return digest.hexdigest()
