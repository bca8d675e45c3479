"""``answers.parquet`` of a bundle: what was answered in words under each mode, and whether it is right."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from bs_cluster.records import JudgedAnswer

ANSWERS = "answers.parquet"
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("owner", pa.string()),
        ("mode", pa.string()),
        ("gates", pa.list_(pa.float64())),
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("text", pa.string()),
        ("right", pa.bool_()),
    ]
)


def write_answers(answers: Iterable[JudgedAnswer]) -> bytes:
    """Parquet, a line per row and mode; ``gates`` are in the order of the bundle's domains."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([answer.to_dict() for answer in answers], schema=SCHEMA), sink)
    return sink.getvalue()


def read_answers(data: bytes) -> list[JudgedAnswer]:
    return [JudgedAnswer.from_dict(line) for line in pq.read_table(io.BytesIO(data)).to_pylist()]
