"""Answers in words: some sweep rows of each owner, generated under every way of answering them, told right from wrong.

Greedy, and a row once under the same gates: what two modes share is not generated twice.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.measure import Routing
from bs_cluster.config.schema import SweepSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.data.rows import Question
from bs_cluster.data.verify import is_right
from bs_cluster.records import JudgedAnswer
from bs_cluster.sweep.combinations import full_mask, mask_weights
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.plan import AnswerRequest, GateWeights
from bs_cluster.sweep.sweep import generate


@dataclass(frozen=True)
class Answers:
    """A line per row and mode, in the sweep's order. ``unasked`` counts rows by owner and by why they were not asked,
    those beyond ``sweep.answer_rows`` aside. ``tokens`` is the most that an answer may have."""

    judged: tuple[JudgedAnswer, ...]
    unasked: dict[str, dict[str, int]]
    tokens: int
    seconds: float


def answer_and_check(
    campaign: Campaign,
    evaluators: Sequence[Any],
    rows: Mapping[str, DomainRows],
    routing: Routing,
    say: Callable[[str], None],
) -> Answers:
    """Generates and checks. ``routed`` is under the gates of a meta-router that never saw the row."""
    started, settings, judged = time.monotonic(), campaign.config.sweep, routing.judged
    parts = [*(rows[domain] for domain in campaign.domains), routing.unowned]
    swept = [pair for part in parts for pair in zip(part.sweep, part.questions, strict=True)]
    assert tuple(row.id for row, _ in swept) == judged.row_ids, "outcomes and rows are in one order"
    asked, unasked = choose_rows(swept, settings)
    table = routing.outcomes.of(asked)
    gates = {row: gates_of(table, place, judged.fitted.routed_BD[row].tolist()) for place, row in enumerate(asked)}
    requests = sorted({(row, weights) for row in asked for weights in gates[row].values()})
    say(f"{'answers':<14} {len(asked)} rows can be checked, {len(requests)} answers to generate")

    prompts = [row.input_ids[: row.prompt_length] for row, _ in swept]
    texts: dict[AnswerRequest, str] = {}
    verdicts: dict[tuple[int, str], bool] = {}

    def right(row: int, text: str) -> bool:
        if (row, text) not in verdicts:
            verdicts[row, text] = is_right(swept[row][1], text)
        return verdicts[row, text]

    for row, weights, text in generate(evaluators, prompts, requests, settings):
        texts[row, weights] = text
        right(row, text)  # while the evaluators go on
    sound = [row for row in asked if right(row, swept[row][1].reference)]
    for row in set(asked) - set(sound):
        unasked[judged.owners[row]]["whose own reference does not pass"] += 1
    answered = [
        _judged(*swept[row], mode, weights, texts[row, weights], right(row, texts[row, weights]))
        for row in sound
        for mode, weights in gates[row].items()
    ]
    reasons = {owner: dict(counts) for owner, counts in unasked.items()}
    return Answers(tuple(answered), reasons, settings.answer_tokens, time.monotonic() - started)


def choose_rows(
    swept: Sequence[tuple[EncodedRow, Question]], settings: SweepSection
) -> tuple[list[int], defaultdict[str, Counter[str]]]:
    """The first ``answer_rows`` of each owner that can be checked, and whose own completion has room; and by owner how
    many can not, or have not."""
    asked: list[int] = []
    taken: Counter[str] = Counter()
    left: defaultdict[str, Counter[str]] = defaultdict(Counter)
    if settings.answer_rows:
        for index, (row, question) in enumerate(swept):
            if question.check.verifier == "none":
                left[row.domain]["that nothing can check"] += 1
            elif row.completion_length > settings.answer_tokens:
                left[row.domain][f"longer than {settings.answer_tokens} tokens"] += 1
            elif taken[row.domain] < settings.answer_rows:
                taken[row.domain] += 1
                asked.append(index)
    return asked, left


def gates_of(table: OutcomeTable, row: int, routed: Sequence[float]) -> dict[str, GateWeights]:
    """The gate weights behind each mode of one row; one that no domain owns has no own stacks to be ``isolated``."""
    losses = table.losses(row)
    owner = table.owners[row]
    own = {"isolated": 1 << table.domains.index(owner)} if owner in table.domains else {}
    masks = {"base": 0, **own, "ungated": full_mask(len(table.domains)), "oracle": min(losses, key=losses.__getitem__)}
    whole = {mode: tuple(mask_weights(mask, len(table.domains))) for mode, mask in masks.items()}
    return whole | {"routed": tuple(routed)}


def _judged(row: EncodedRow, question: Question, mode: str, gates: GateWeights, text: str, right: bool) -> JudgedAnswer:
    return JudgedAnswer(
        row_id=row.id,
        owner=row.domain,
        mode=mode,
        gates=gates,
        prompt=question.prompt,
        reference=question.reference,
        text=text,
        right=right,
    )
