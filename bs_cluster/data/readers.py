"""Raw rows from where they live: the built-in domains, JSONL and Parquet files, the Hub, reasoning-gym."""

from __future__ import annotations

import codecs
import functools
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from bs_cluster.config.sources import (
    EmbeddedSource,
    FileSource,
    HubSource,
    JsonlSource,
    ParquetSource,
    ReasoningGymSource,
    SourceSection,
)
from bs_cluster.data.builtin import PREFERENCES, embedded_preferences, embedded_rows
from bs_cluster.data.procedural import gym_check, gym_items
from bs_cluster.errors import DataError

RawRow = Mapping[str, Any]

GZIP = b"\x1f\x8b"
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
MAX_LINE_BYTES = 32 * 1024 * 1024
# Of each task when ``take`` does not say: a procedural source has no end of its own.
ROWS_PER_TASK = 500


def read_source(source: SourceSection, *, seed: int) -> Iterator[RawRow]:
    """The source's raw rows that pass ``where``, at most ``take`` of them, in a fixed order.

    ``seed`` is used by the built-in domains and reasoning-gym only. Raises DataError, with the path or name, when
    the source cannot be read; nothing falls back to another split.
    """
    rows = (row for row in raw_rows(source, seed) if _passes(row, source.where))
    return itertools.islice(rows, source.take)


@functools.singledispatch
def raw_rows(source: SourceSection, seed: int) -> Iterator[RawRow]:
    """Every raw row of a source. A reader for a section of one's own is registered by ``@raw_rows.register``."""
    raise DataError(f"nothing reads a source of kind {source.kind_name()}; its module must register a reader")


def _passes(row: RawRow, where: Mapping[str, str]) -> bool:
    for name, wanted in where.items():
        if name not in row:
            raise DataError(f"where names the column {name!r}; the row has {sorted(row)}")
        if str(row[name]) != wanted:
            return False
    return True


def _files(source: FileSource) -> list[str]:
    paths = source.files()
    if not paths:
        raise DataError(
            f"no file matches {source.path!r} in {os.getcwd()}; every node that loads data must see the file"
        )
    return paths


@raw_rows.register
def _(source: JsonlSource, seed: int) -> Iterator[RawRow]:
    for path in _files(source):
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                yield _json_object(line, f"{path}:{number}")


def _lines(path: str) -> Iterator[bytes]:
    """A text file's lines, unpacked where it is gzipped. Raises DataError for what cannot be read or has no lines."""
    try:
        with open(path, "rb") as plain:
            start = plain.read(3)
            if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise DataError(f"{path} is UTF-16; save it as UTF-8")
            plain.seek(len(codecs.BOM_UTF8) if start == codecs.BOM_UTF8 else 0)
            with gzip.open(plain) if start[:2] == GZIP else plain as lines:
                while line := lines.readline(MAX_LINE_BYTES + 1):
                    if len(line) > MAX_LINE_BYTES:
                        raise DataError(f"{path} has a line of more than {MAX_LINE_BYTES} bytes; one object a line")
                    yield line
    except (OSError, EOFError, zlib.error) as error:  # gzip's own errors among them
        raise DataError(f"{path} cannot be read: {error}; mend it, or take it out of the source") from error


def _json_object(line: bytes, place: str) -> RawRow:
    try:
        row = json.loads(line.decode("utf-8"))
        if SURROGATE.search(line):
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{place} holds half a surrogate pair, which is no character; mend or drop the line") from error
    except RecursionError as error:
        raise DataError(f"{place} is nested too deep; one flat object a line is expected") from error
    except ValueError as error:  # no JSON, or a number of thousands of digits
        raise DataError(f"{place} is not JSON ({error}); one object a line is expected") from error
    if not isinstance(row, dict):
        raise DataError(f"{place} holds a {type(row).__name__}; one object a line is expected")
    return row


@raw_rows.register
def _(source: ParquetSource, seed: int) -> Iterator[RawRow]:
    for path in _files(source):
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1024):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error


@raw_rows.register
def _(source: HubSource, seed: int) -> Iterator[RawRow]:
    import datasets  # noqa: PLC0415 - seconds to import, and only Hub sources need it
    from datasets.exceptions import DatasetsError  # noqa: PLC0415 - the same

    # Streaming reads `take` rows and no more; without it the whole split is wanted and the local cache is faster.
    streaming = source.take is not None
    try:
        for row in datasets.load_dataset(source.name, source.config, split=source.split, streaming=streaming):
            yield cast(RawRow, row)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"cannot load split {source.split!r} of {source.name!r}: {error}; check name, config and split, "
            "that the Hub can be reached, and HF_TOKEN if the data set is gated"
        ) from error


@raw_rows.register
def _(source: EmbeddedSource, seed: int) -> Iterator[RawRow]:
    rows = embedded_preferences if source.name in PREFERENCES else embedded_rows
    for sample in rows(source.name, seed):
        yield sample._asdict()


@raw_rows.register
def _(source: ReasoningGymSource, seed: int) -> Iterator[RawRow]:
    per_task = ROWS_PER_TASK if source.take is None else -(-source.take // len(source.tasks))
    streams = [gym_items(task, per_task, seed, **source.settings.get(task, {})) for task in source.tasks]
    for items in zip(*streams, strict=True):  # in turns, so that `take` cuts all tasks alike
        for task, item in zip(source.tasks, items, strict=True):
            answer = "" if item["answer"] is None else str(item["answer"])
            check = gym_check(task, item, "text")
            yield {"prompt": item["question"], "completion": answer, "task": task, "check": check}
