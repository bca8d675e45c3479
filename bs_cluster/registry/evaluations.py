"""What MLflow's evaluation views show of a bundle: the rows that it was judged on, one by one. Pure functions.

Two forms of the same rows, for the two places where MLflow puts runs side by side. A *trace* per row that was answered
in words, with its verdict and losses as assessments: *Evaluation runs* of an experiment pairs the traces of two runs by
their prompt. And a *table* of all rows, under the name that MLflow's own evaluations give theirs: the artifact view of
*Runs* pairs tables by a column.

Ids of traces, spans and assessments follow from the run and the row, so that what is told twice is there once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Assessment, AssessmentSource, Expectation, Feedback, RunInfo, Span, TraceInfo
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.tracing.constant import AssessmentMetadataKey, SpanAttributeKey, TraceMetadataKey, TraceTagKey

from bs_cluster.records import JudgedAnswer, ModeLosses
from bs_cluster.registry.descriptions import cut

TABLE = "eval_results_table.json"
WORDS = 50  # rows of each owner whose words are shown
FIRES = 0.5  # the gate weight from which on a domain is named among those that fire
# Modes that have assessments, with the ends of their names: what people get, and what they would get without stacks.
SHOWN = {"routed": "", "base": "_base"}
MAX_PREVIEW = 1000
SOURCE = AssessmentSource("CODE", "bs_cluster")


@dataclass(frozen=True)
class Row:
    """``losses`` holds nats per completion token by mode, ``gates`` the weights that it is routed under by domain,
    ``answers`` what was answered by mode, empty for a row whose words are not shown."""

    id: str
    owner: str
    tokens: int
    losses: Mapping[str, float | None]
    gates: Mapping[str, float]
    answers: Mapping[str, JudgedAnswer]


def rows_of(losses: ModeLosses, answers: Iterable[JudgedAnswer]) -> list[Row]:
    """All rows, in the sweep's order. Of each owner the first ``WORDS`` that were answered have their words."""
    given: dict[str, dict[str, JudgedAnswer]] = {}
    owners: Counter[str] = Counter()
    for answer in answers:
        if answer.row_id not in given:
            owners[answer.owner] += 1
        if answer.row_id in given or owners[answer.owner] <= WORDS:
            given.setdefault(answer.row_id, {})[answer.mode] = answer
    return [
        Row(
            id=row,
            owner=owner,
            tokens=tokens,
            losses={mode: _per_token(nll[place], tokens) for mode, nll in losses.nll.items()},
            gates={domain: gates[place] for domain, gates in losses.gates.items()},
            answers=given.get(row, {}),
        )
        for place, (row, owner, tokens) in enumerate(zip(losses.row_ids, losses.owners, losses.tokens, strict=True))
    ]


def _per_token(nll: float | None, tokens: int) -> float | None:
    return None if nll is None else nll / tokens


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as MLflow reads a table, ``{"columns": […], "data": [[…], …]}``, those with words first; what a row has
    not is null. MLflow begins by comparing the second column row by row of the first."""
    rows = sorted(rows, key=lambda row: not row.answers)
    columns: dict[str, list[Any]] = {"prompt": [_words(row, "prompt") for row in rows]}
    for mode in _modes(mode for row in rows for mode in row.answers):
        found = [row.answers.get(mode) for row in rows]
        columns[f"answer/{mode}"] = [answer and answer.text for answer in found]
        columns[f"correct/{mode}"] = [None if answer is None else answer.right for answer in found]
    columns["expected"] = [_words(row, "reference") for row in rows]
    columns["owner"] = [row.owner for row in rows]
    columns["row"] = [row.id for row in rows]
    columns["fires"] = [fires(row.gates) for row in rows]
    for mode in _modes(mode for row in rows for mode in row.losses):
        columns[f"loss/{mode}"] = [row.losses[mode] for row in rows]
    for domain in dict.fromkeys(domain for row in rows for domain in row.gates):
        columns[f"gate/{domain}"] = [row.gates[domain] for row in rows]
    columns["tokens"] = [row.tokens for row in rows]
    return {"columns": list(columns), "data": [list(line) for line in zip(*columns.values(), strict=True)]}


def _modes(found: Iterable[str]) -> list[str]:
    """Each once, those that are looked at first in front."""
    return sorted(dict.fromkeys(found), key=lambda mode: list(SHOWN).index(mode) if mode in SHOWN else len(SHOWN))


def _words(row: Row, name: str) -> str | None:
    return next((getattr(answer, name) for answer in row.answers.values()), None)


def fires(gates: Mapping[str, float]) -> str:
    """``chat + math``: the domains with half a gate or more, the strongest first."""
    strong = [domain for domain, gate in sorted(gates.items(), key=lambda item: -item[1]) if gate >= FIRES]
    return " + ".join(strong) or "no domain"


def traces(rows: Sequence[Row], run: RunInfo, model_id: str | None) -> list[tuple[TraceInfo, list[Span]]]:
    """A trace for each row that has words: its prompt and the routed answer, under it a span for each other mode."""
    shown = [row for row in rows if row.answers]
    return [_trace(row, run, model_id, place) for place, row in enumerate(shown)]


def _trace(row: Row, run: RunInfo, model_id: str | None, place: int) -> tuple[TraceInfo, list[Span]]:
    routed = row.answers["routed"]
    trace_id = f"tr-{_id(run.run_id, row.id, size=32)}"
    about = {} if model_id is None else {TraceMetadataKey.MODEL_ID: model_id}
    time_ms = run.start_time - place  # the newest stand first: in the sweep's order
    info = TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id(run.experiment_id),
        request_time=time_ms,
        state=TraceState.OK,
        request_preview=cut(routed.prompt, MAX_PREVIEW),
        response_preview=cut(routed.text, MAX_PREVIEW),
        client_request_id=row.id,
        execution_duration=0,
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run.run_id, **about},
        tags={TraceTagKey.TRACE_NAME: row.id, "owner": row.owner},
        assessments=[
            _of_run(assessment, trace_id, run.run_id, time_ms) for assessment in _assessments(row, routed.reference)
        ],
    )
    root = _span(trace_id, None, routed, time_ms, row.gates)
    others = [mode for mode in _modes(row.answers) if mode != routed.mode]
    return info, [root, *(_span(trace_id, root.span_id, row.answers[mode], time_ms, {}) for mode in others)]


def _assessments(row: Row, reference: str) -> list[Assessment]:
    gates = " ".join(f"{domain} {gate:.2f}" for domain, gate in row.gates.items())
    told: list[Assessment] = [
        Expectation("expected_response", reference, SOURCE),
        Feedback("fires", fires(row.gates), source=SOURCE, rationale=f"gates: {gates or 'none'}"),
    ]
    for mode, suffix in SHOWN.items():
        if (answer := row.answers.get(mode)) is not None:
            told.append(Feedback(f"correct{suffix}", answer.right, source=SOURCE, rationale=answer.text))
        if (loss := row.losses.get(mode)) is not None:
            each = f"nats per token, of {row.tokens}"
            told.append(Feedback(f"loss{suffix}", loss, source=SOURCE, rationale=each))
    return told


def _of_run(assessment: Assessment, trace_id: str, run_id: str, time_ms: int) -> Assessment:
    assessment.trace_id = trace_id
    assessment.assessment_id = f"a-{_id(trace_id, assessment.name, size=32)}"
    assessment.metadata = {AssessmentMetadataKey.SOURCE_RUN_ID: run_id}
    assessment.create_time_ms = assessment.last_update_time_ms = time_ms
    return assessment


def _span(trace_id: str, parent: str | None, answer: JudgedAnswer, time_ms: int, gates: Mapping[str, float]) -> Span:
    attributes = {
        SpanAttributeKey.REQUEST_ID: trace_id,
        SpanAttributeKey.SPAN_TYPE: "CHAIN" if parent is None else "LLM",
        SpanAttributeKey.INPUTS: answer.prompt,
        SpanAttributeKey.OUTPUTS: answer.text,
        "owner": answer.owner,
        "correct": answer.right,
        **{f"gate/{domain}": gate for domain, gate in gates.items()},
    }
    return Span.from_dict(
        {
            "trace_id": _bytes(trace_id.removeprefix("tr-")),
            "span_id": _bytes(_id(trace_id, answer.mode, size=16)),
            "parent_span_id": parent and _bytes(parent),
            "name": answer.mode,
            "start_time_unix_nano": time_ms * 1_000_000,
            "end_time_unix_nano": time_ms * 1_000_000,
            "status": {"code": "STATUS_CODE_OK"},
            "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()},
        }
    )


def _id(*parts: str, size: int) -> str:
    """Hexadecimal, the same for the same parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:size]


def _bytes(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()
