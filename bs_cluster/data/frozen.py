"""A domain's encoded rows as bytes, kept with its record when it closes.

From then on they are that domain's rows: the losses measured on them stay comparable, and adding a domain (which may
claim rows by keyword or by duplicate) cannot change what an earlier one is judged on.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bs_cluster.data.aligned import AlignedRows, Pair, Task
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.rows import Check, Question
from bs_cluster.errors import IntegrityError
from bs_cluster.records import DomainRecord

SCHEMA = pa.schema(
    [
        ("round", pa.int32()),  # of the domain's list, where a row is of an alignment round; null: the domain's own
        ("split", pa.string()),
        ("side", pa.string()),  # chosen or rejected, of a pair
        ("id", pa.string()),
        ("domain", pa.string()),
        ("prompt_length", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("router_ids", pa.list_(pa.int32())),
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("verifier", pa.string()),
        ("key", pa.string()),
    ]
)


PROBE_ROWS = 4


def probe_rows(validation: Sequence[EncodedRow]) -> tuple[EncodedRow, ...]:
    """The first ``PROBE_ROWS`` of a domain's validation rows, on which its bits are probed (``inference/probe.py``)."""
    return tuple(validation[:PROBE_ROWS])


@dataclass(frozen=True)
class DomainRows:
    """A domain's encoded rows. Of the sweep rows, in their order, ``router_prompts`` are the prompts as the meta-router
    will see them and ``questions`` the rows in words, to check answers by. ``aligned`` has those of each alignment
    round, by its place in the domain's list of rounds."""

    train: tuple[EncodedRow, ...]
    validation: tuple[EncodedRow, ...]
    sweep: tuple[EncodedRow, ...]
    router_prompts: tuple[tuple[int, ...], ...]
    questions: tuple[Question, ...]
    fingerprint: str
    counts: dict[str, int]
    aligned: Mapping[int, AlignedRows] = field(default_factory=dict)

    def to_parquet(self) -> bytes:
        """Rows in order, split by split; equal rows give equal bytes. Fingerprint and counts are the record's."""
        splits: Mapping[str, Sequence[EncodedRow]] = {
            "train": self.train,
            "validation": self.validation,
            "sweep": self.sweep,
        }
        words = [_words(*of) for of in zip(self.router_prompts, self.questions, strict=True)]
        sweep = dict(zip((row.id for row in self.sweep), words, strict=True))
        lines = [
            _line(split, row) | (sweep[row.id] if split == "sweep" else {})
            for split, rows in splits.items()
            for row in rows
        ]
        for place, aligned in sorted(self.aligned.items()):
            lines += [line | {"round": place} for line in _aligned_lines(aligned)]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), sink)
        return sink.getvalue()

    @classmethod
    def of(cls, record: DomainRecord, read: Callable[[str], bytes]) -> DomainRows:
        """The rows that a domain closed with; ``read`` gives the store's bytes by digest."""
        return cls.from_parquet(read(record.rows), record.data_fingerprint, record.data_counts)

    @classmethod
    def from_parquet(cls, data: bytes, fingerprint: str, counts: dict[str, int]) -> DomainRows:
        """Raises IntegrityError for rows that another version wrote."""
        table = pq.read_table(io.BytesIO(data))
        if table.column_names != SCHEMA.names:
            raise IntegrityError(
                f"a closed domain's rows have the columns {table.column_names}, {SCHEMA.names} are wanted; they were "
                "written by another version of bs_cluster: use that version"
            )
        lines = table.to_pylist()

        def rows(split: str) -> tuple[EncodedRow, ...]:
            return tuple(_row(line) for line in lines if line["split"] == split and line["round"] is None)

        swept = [line for line in lines if line["split"] == "sweep"]
        prompts = tuple(tuple(line["router_ids"]) for line in swept)
        questions = tuple(map(_question, swept))
        places = sorted({line["round"] for line in lines} - {None})
        aligned = {place: _aligned_of([line for line in lines if line["round"] == place], counts) for place in places}
        return cls(rows("train"), rows("validation"), rows("sweep"), prompts, questions, fingerprint, counts, aligned)

    def without(self, ids: frozenset[str]) -> DomainRows:
        """The same rows without those of these ids."""
        kept = [i for i, row in enumerate(self.sweep) if row.id not in ids]
        return replace(
            self,
            train=tuple(row for row in self.train if row.id not in ids),
            validation=tuple(row for row in self.validation if row.id not in ids),
            sweep=tuple(self.sweep[i] for i in kept),
            router_prompts=tuple(self.router_prompts[i] for i in kept),
            questions=tuple(self.questions[i] for i in kept),
        )

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(row.id for rows in (self.train, self.validation, self.sweep) for row in rows)


def _line(split: str, row: EncodedRow) -> dict[str, Any]:
    tokens = {"prompt_length": row.prompt_length, "input_ids": list(row.input_ids)}
    return {"split": split, "id": row.id, "domain": row.domain, **tokens}


def _row(line: Mapping[str, Any]) -> EncodedRow:
    return EncodedRow(tuple(line["input_ids"]), line["prompt_length"], line["id"], line["domain"])


def _in_words(question: Question) -> dict[str, Any]:
    check = question.check
    return {"prompt": question.prompt, "reference": question.reference, "verifier": check.verifier, "key": check.key}


def _question(line: Mapping[str, Any]) -> Question:
    return Question(line["prompt"], line["reference"], Check(line["verifier"], line["key"]))


def _words(router_ids: tuple[int, ...], question: Question) -> dict[str, Any]:
    """What a sweep row's line holds beside its tokens."""
    return {"router_ids": list(router_ids), **_in_words(question)}


def _aligned_lines(aligned: AlignedRows) -> Iterator[dict[str, Any]]:
    for split, rows in (("train", aligned.train), ("held_out", aligned.held_out)):
        for row in rows:
            if isinstance(row, Task):
                yield _line(split, row.row) | _in_words(row.question)
            else:
                yield _line(split, row.chosen) | {"side": "chosen", "prompt": row.prompt}
                yield _line(split, row.rejected) | {"side": "rejected"}


def _aligned_of(lines: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> AlignedRows:
    """The rows of one round, of which every pair's lines stand one after the other."""

    def rows(split: str) -> tuple[Pair | Task, ...]:
        own = [line for line in lines if line["split"] == split]
        chosen = [line for line in own if line["side"] == "chosen"]
        if not chosen:
            return tuple(Task(_row(line), _question(line)) for line in own)
        rejected = [line for line in own if line["side"] == "rejected"]
        both = zip(chosen, rejected, strict=True)
        return tuple(Pair(_row(better), _row(worse), better["prompt"]) for better, worse in both)

    prefix = f"rounds.{lines[0]['round']}: "
    own = {key.removeprefix(prefix): count for key, count in counts.items() if key.startswith(prefix)}
    return AlignedRows(rows("train"), rows("held_out"), own)
