"""The rows of a domain's alignment rounds: pairs of answers, or prompts whose answers can be checked.

They are kept apart from every domain's held-out rows: a stack never learns from a prompt that judges it, or that judges
the meta-router. Of their own they hold out those that rank first by a hash of their prompts, as all splits do, and that
no domain trains on: an answer that was learned says nothing of what a round gained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bs_cluster.config.rounds import DPO, RoundSection
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.clean import clean_text, normalise
from bs_cluster.data.domains import cleaned, read_rows
from bs_cluster.data.encode import EncodedRow, encode_rows
from bs_cluster.data.formats import UnusableRow, column, conversation, text
from bs_cluster.data.readers import read_source
from bs_cluster.data.rows import DomainData, Prompt, Question, Row, make_row
from bs_cluster.data.split import prompt_rank
from bs_cluster.errors import DataError
from bs_cluster.records import canonical_json, sha256_hex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pair(NamedTuple):
    """Two answers to one prompt, of which people prefer the first."""

    chosen: EncodedRow
    rejected: EncodedRow
    prompt: str

    @property
    def answers(self) -> tuple[EncodedRow, EncodedRow]:
        return self.chosen, self.rejected


class Task(NamedTuple):
    """A prompt with the answer that its source gives, and how another one is checked."""

    row: EncodedRow
    question: Question


@dataclass(frozen=True)
class AlignedRows:
    """What one alignment round learns from, and the prompts that judge it. Of both there are ``pairs`` or ``tasks``."""

    train: tuple[Pair | Task, ...]
    held_out: tuple[Pair | Task, ...]
    counts: dict[str, int]


class Preference(NamedTuple):
    chosen: Row
    rejected: Row


class Known(NamedTuple):
    """Prompts, normalised, that judge any domain or its router, and those that any domain trains on."""

    judged: frozenset[str]
    trained: frozenset[str]

    @classmethod
    def of(cls, domains: Collection[DomainData]) -> Known:
        judged = frozenset(normalise(row.prompt) for data in domains for row in (*data.validation, *data.sweep))
        return cls(judged, frozenset(normalise(row.prompt) for data in domains for row in data.train))


def load_aligned(
    config: CampaignConfig, domain: str, place: int, known: Known, tokenizer: PreTrainedTokenizerBase
) -> AlignedRows:
    """The rows of ``domain``'s entry number ``place`` of its rounds, encoded. Prompts that judge a domain are left out,
    and none that a domain trains on is held out.

    Raises DataError where the source cannot be read, or its rows do not fill what is held out and leave some to learn.
    """
    entry = config.domain(domain).rounds[place]
    where = f"domain {domain!r}, rounds.{place} ({entry.objective})"
    assert entry.source is not None, "conflicts.py asks for it"
    counts: Counter[str] = Counter()
    try:
        found = _preferences(config, entry, domain, counts) if entry.objective == DPO else None
        rows: Sequence[Any] = _tasks(config, entry, domain, counts) if found is None else found
    except DataError as error:
        raise DataError(f"{where}, source {entry.source.label}: {error}") from error
    kept: dict[str, Any] = {}
    for row in rows:
        prompt = normalise(_asked(row).prompt)
        counts["judged elsewhere"] += prompt in known.judged
        counts["duplicates"] += prompt not in known.judged and prompt in kept
        if prompt not in known.judged:
            kept.setdefault(prompt, row)
    ranked = sorted(kept, key=lambda prompt: prompt_rank(_asked(kept[prompt])))
    fresh = [prompt for prompt in ranked if prompt not in known.trained]
    if len(fresh) < entry.held_out or len(ranked) <= entry.held_out:
        raise DataError(
            f"{where}: {len(ranked)} usable {entry.unit}s, {len(fresh)} of which no domain trains on, but held_out = "
            f"{entry.held_out} of those judge the round and at least one must be left to learn from; give it more "
            "rows, or lower held_out"
        )
    held = set(fresh[: entry.held_out])
    encode = _encoded_pairs if entry.objective == DPO else _encoded_tasks
    train, held_out = (
        encode([kept[prompt] for prompt in ranked if (prompt in held) is wanted], tokenizer, config)
        for wanted in (False, True)
    )
    counts |= Counter(train=len(train), held_out=len(held_out))
    return AlignedRows(train, held_out, {what: count for what, count in counts.items() if count})


def with_aligned(fingerprint: str, aligned: Mapping[int, AlignedRows]) -> str:
    """A domain's fingerprint where it has alignment rounds: over its own and over every row of theirs, in order."""
    if not aligned:
        return fingerprint
    rows = [[place, [list(map(_tokens, of.train)), list(map(_tokens, of.held_out))]] for place, of in aligned.items()]
    return sha256_hex(canonical_json([fingerprint, rows]))


def _tokens(row: Pair | Task) -> list[Any]:
    if isinstance(row, Task):
        return [row.row.id, list(row.row.input_ids), list(row.question.check)]
    return [row.chosen.id, list(row.chosen.input_ids), list(row.rejected.input_ids)]


def counts_of(aligned: Mapping[int, AlignedRows]) -> dict[str, int]:
    """What became of the rows of each round, as a domain's counts name it: ``rounds.1: train``."""
    return {f"rounds.{place}: {what}": count for place, of in aligned.items() for what, count in of.counts.items()}


def _asked(row: Row | Preference) -> Row:
    return row if isinstance(row, Row) else row.chosen


def _tasks(config: CampaignConfig, entry: RoundSection, domain: str, counts: Counter[str]) -> list[Row]:
    assert entry.source is not None
    rows = read_rows(entry.source, domain, config, counts)
    checked = [row for row in rows if row.check.verifier != "none"]
    counts["unchecked"] += len(rows) - len(checked)
    if not checked:
        raise DataError("no row says how an answer to it is checked; set the source's verify")
    return checked


def _preferences(config: CampaignConfig, entry: RoundSection, domain: str, counts: Counter[str]) -> list[Preference]:
    assert entry.source is not None
    strip, found, reasons = config.data.strip_chat_tokens, [], Counter[str]()
    for raw in read_source(entry.source, seed=config.seed):
        counts["read"] += 1
        try:
            prompt, chosen, rejected = preference(raw)
        except UnusableRow as error:
            reasons[str(error)] += 1
            continue
        prompt = cleaned(prompt, strip)
        chosen, rejected = clean_text(chosen, strip=strip), clean_text(rejected, strip=strip)
        if not (prompt and chosen and rejected) or chosen == rejected:
            counts["empty or equal"] += 1
            continue
        found.append(Preference(make_row(prompt, chosen, domain), make_row(prompt, rejected, domain)))
    counts["unusable"] += reasons.total()
    if not found:
        told = "; ".join(f"{reason} ({count} rows)" for reason, count in reasons.most_common(3))
        raise DataError(f"none of its {counts['read']} rows is a preference{': ' + told if told else ''}")
    return found


def preference(raw: Mapping[str, Any]) -> tuple[Prompt, str, str]:
    """``(prompt, chosen, rejected)`` of a raw row: three texts, or TRL's conversational forms, in which chosen and
    rejected are lists of messages with the prompt before them or in a column of its own.

    Raises DataError for a column that is not there, UnusableRow for a row of another shape.
    """
    chosen, rejected = column(raw, "chosen"), column(raw, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(raw.get("prompt"), str):
        return text(raw, "prompt"), chosen, rejected
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise UnusableRow("chosen and rejected are not of one shape, or there is no prompt")
    before = raw.get("prompt")
    said = [{"role": "user", "content": before}] if isinstance(before, str) else list(before or ())
    answers = []
    for messages in (chosen, rejected):
        whole = messages if _begins_a_conversation(messages) else [*said, *messages]
        answers.append(conversation(whole))
    (asked, better), (same, worse) = answers
    if asked != same:
        raise UnusableRow("chosen and rejected answer two prompts")
    return asked, better, worse


def _begins_a_conversation(messages: Sequence[Mapping[str, Any]]) -> bool:
    first = messages[0] if messages else {}
    return str(first.get("role") or first.get("from") or "").lower() not in ("assistant", "gpt", "model")


def _encoded_pairs(
    rows: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, config: CampaignConfig
) -> tuple[Pair, ...]:
    chosen = encode_rows([row.chosen for row in rows], tokenizer, config.data)
    rejected = encode_rows([row.rejected for row in rows], tokenizer, config.data)
    prompts = [row.chosen.prompt for row in rows]
    return tuple(Pair(*of) for of in zip(chosen, rejected, prompts, strict=True))


def _encoded_tasks(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: CampaignConfig) -> tuple[Task, ...]:
    encoded = encode_rows(rows, tokenizer, config.data)
    return tuple(Task(row, of.question) for row, of in zip(encoded, rows, strict=True))
