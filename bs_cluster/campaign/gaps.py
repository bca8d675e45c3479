"""What a campaign does not serve: the poor rows of a bundle's sweep and of files, in groups that a domain could start
on.

A sweep row is as good as what it was served with or its best measured combination; of a row out of a file the base and
what is served are measured, and it is as good as the better of the two. Each is held against the domains' own sweep
rows, measured alike.

Shapes: B rows, D domains, N poor rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bs_cluster.campaign.certify import UNOWNED, closings
from bs_cluster.campaign.in_process import Scorer, encoder
from bs_cluster.campaign.lessons import teach_anchor
from bs_cluster.campaign.promote import bundle_losses
from bs_cluster.campaign.recompute import sweep_table
from bs_cluster.config.sources import JsonlSource
from bs_cluster.data.domains import read_rows
from bs_cluster.data.encode import encode_rows
from bs_cluster.data.frozen import DomainRows
from bs_cluster.data.rows import Row
from bs_cluster.data.split import prompt_rank
from bs_cluster.errors import DataError
from bs_cluster.promotion import SERVED
from bs_cluster.records import BundleManifest, Record
from bs_cluster.router.anchor import Anchor
from bs_cluster.router.gaps import Standard, beyond_limits, groups, likeness
from bs_cluster.router.routers import AnchoredRouter
from bs_cluster.serving.runtime import BundleRuntime
from bs_cluster.store import Store

WORDS = 6


@dataclass(frozen=True)
class AskedRow(Record):
    """A row and its mean losses: under the base, as good as it gets, and as it is served, where that was measured."""

    id: str
    owner: str
    prompt: str
    completion: str
    tokens: int
    base: float
    best: float
    served: float | None


@dataclass(frozen=True)
class Gap(Record):
    """Rows that belong together, those nearest to their centre first; ``promise`` is what they would gain in nats, all
    tokens of all rows, if a domain served them as the domains' middle row is served. ``words`` stand in their prompts
    more often than in others'."""

    rows: tuple[AskedRow, ...]
    promise: float
    words: tuple[str, ...]

    @property
    def owners(self) -> dict[str, int]:
        """How many rows are whose, most first."""
        return dict(Counter(row.owner for row in self.rows).most_common())

    def loss(self, mode: str) -> float | None:
        """Nats per completion token under ``base``, ``best`` or ``served``; None where a row was not measured so."""
        losses = [getattr(row, mode) for row in self.rows]
        if None in losses:
            return None
        tokens = [row.tokens for row in self.rows]
        return sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)


@dataclass(frozen=True)
class Gaps(Record):
    """The groups, those that promise most first; how many rows were looked at, and how many of them are poor."""

    campaign: str
    bundle: int
    rows: int
    poor: int
    gaps: tuple[Gap, ...]


@dataclass(frozen=True)
class Looked:
    """Rows with the base's pooled states of their prompts (B, F), and which of them are poor (B,)."""

    rows: Sequence[AskedRow]
    features_BF: np.ndarray
    poor_B: np.ndarray
    standard: Standard

    @classmethod
    def at(cls, rows: Sequence[AskedRow], features_BF: np.ndarray, anchor: Anchor, standard: Standard) -> Looked:
        base_B, best_B = np.array([row.base for row in rows]), np.array([row.best for row in rows])
        poor_B = standard.poor(base_B, best_B, beyond_limits(anchor, anchor.directions(features_BF)))
        return cls(rows, features_BF, poor_B, standard)

    def promise(self, places: np.ndarray) -> float:
        """Nats that these rows would gain."""
        rows = [self.rows[place] for place in places]
        base_N, best_N = np.array([row.base for row in rows]), np.array([row.best for row in rows])
        return float(self.standard.promise(base_N, best_N) @ np.array([row.tokens for row in rows]))


def group_gaps(anchor: Anchor, looked: Sequence[Looked]) -> tuple[Gap, ...]:
    """The groups of all that is poor, those that promise most first."""
    of = [(part, place) for part in looked for place in np.flatnonzero(part.poor_B).tolist()]
    if not of:
        return ()
    prompts = [row.prompt for part in looked for row in part.rows]
    directions_NK = anchor.directions(np.stack([part.features_BF[place] for part, place in of]))
    found = []
    for group in groups(directions_NK, likeness(anchor)):
        rows = tuple(of[n][0].rows[of[n][1]] for n in group)
        promise = sum(of[n][0].promise(np.array([of[n][1]])) for n in group)
        found.append(Gap(rows, promise, telling_words([row.prompt for row in rows], prompts)))
    return tuple(sorted(found, key=lambda gap: -gap.promise))


def telling_words(prompts: Sequence[str], among: Sequence[str]) -> tuple[str, ...]:
    """The words of three letters or more that stand in more of ``prompts`` than of all prompts, by how many more."""
    own, all_of_them = _documents(prompts), _documents(among)
    more = {word: count / len(prompts) - all_of_them[word] / len(among) for word, count in own.items() if count > 1}
    return tuple(sorted((word for word in more if more[word] > 0), key=lambda word: (-more[word], word))[:WORDS])


def _documents(prompts: Iterable[str]) -> Counter[str]:
    """In how many prompts each word stands."""
    return Counter(word for prompt in prompts for word in set(re.findall(r"[^\W\d_]{3,}", prompt.lower())))


def find_gaps(
    store: Store, bundle: BundleManifest, files: Sequence[Path], most: int, device: str, say: Callable[[str], None]
) -> Gaps:
    """The gaps of a bundle among its sweep rows and ``most`` rows of each file of ``prompt`` and ``completion``. Raises
    NotInStoreError for a bundle without outcomes, DataError for a file with no row to use."""
    rows = {record.domain: DomainRows.of(record, store.get_bytes) for record in closings(store, bundle)}
    parts = [*rows.values(), DomainRows.from_parquet(store.get_bytes(bundle.file(UNOWNED).sha256), "", {})]
    swept = _swept(store, bundle, parts)
    say("the base is loaded, and prompts are encoded")
    runtime = BundleRuntime(store, bundle, device)
    encode = encoder(runtime.stacked, runtime.config)
    router = runtime.served.router
    anchor = (
        router.anchor
        if isinstance(router, AnchoredRouter)
        else teach_anchor(runtime.config, bundle.domains, rows, encode)
    )
    own = [row for row in swept if row.owner in bundle.domains]
    standard = _standard(own, "best")
    prompts = [prompt for part in parts for prompt in part.router_prompts]
    looked = [Looked.at(swept, np.stack(encode(prompts, True)), anchor, standard)]
    for path in files:
        say(f"{path} is scored under the base and as it is served")
        read = _read(path, runtime, most)
        ids = [runtime.router_ids(row.asked) for row in read]
        given = _scored(read, ids, runtime)
        looked.append(Looked.at(given, np.stack(encode(ids, True)), anchor, _standard(own, "served")))
    counted = sum(len(part.rows) for part in looked), sum(int(part.poor_B.sum()) for part in looked)
    return Gaps(store.campaign, bundle.number, *counted, group_gaps(anchor, looked))


def _standard(own: Sequence[AskedRow], mode: str) -> Standard:
    """Of the domains' own rows, as good as they were measured in ``mode``."""
    measured = [(row.base, loss) for row in own if (loss := getattr(row, mode)) is not None]
    if not measured:
        raise DataError("no sweep row of a domain was served; its losses are not in the bundle: run the campaign again")
    base_B, best_B = np.array(measured).T
    return Standard.of(base_B, np.minimum(base_B, best_B))


def _swept(store: Store, bundle: BundleManifest, parts: Sequence[DomainRows]) -> list[AskedRow]:
    """The sweep's rows as its table and the bundle's losses tell them."""
    table, losses = sweep_table(store, bundle, parts), bundle_losses(store, bundle)
    served = dict(zip(losses.row_ids, losses.nll.get(SERVED, [None] * len(losses.row_ids)), strict=True))
    base_B, best_B = table.loss_BC([0])[:, 0], table.best_nll() / np.maximum(table.tokens_B, 1)
    questions = [question for part in parts for question in part.questions]
    found = []
    for b, (id, owner, question) in enumerate(zip(table.row_ids, table.owners, questions, strict=True)):
        tokens, nll = int(table.tokens_B[b]), served.get(id)
        routed = None if nll is None else nll / tokens
        best = float(best_B[b]) if routed is None else min(float(best_B[b]), routed)
        words = question.prompt, question.reference
        found.append(AskedRow(id, owner, *words, tokens, float(base_B[b]), best, routed))
    return found


def _read(path: Path, runtime: BundleRuntime, most: int) -> list[Row]:
    """Rows of a file, those that rank first by a hash of their prompts, each once."""
    source, owner = JsonlSource(kind="jsonl", path=str(path)), f"file:{path.name}"
    rows = {row.id: row for row in read_rows(source, owner, runtime.config, Counter())}
    if not rows:
        raise DataError(f"{path} holds no row; a line is an object with prompt and completion")
    return sorted(rows.values(), key=prompt_rank)[:most]


def _scored(rows: Sequence[Row], router_ids: Sequence[Sequence[int]], runtime: BundleRuntime) -> list[AskedRow]:
    """These rows under the base and under the gates that the bundle serves them with."""
    encoded = encode_rows(rows, runtime.stacked.base.tokenizer, runtime.config.data)
    score = Scorer(runtime.stacked, encoded, runtime.domains, runtime.config.sweep.batch_tokens)
    batches = [router_ids[at : at + 32] for at in range(0, len(router_ids), 32)]
    gates_BD = [gates for batch in batches for gates in runtime.route(batch).tolist()]
    base = score([(row.id, [0.0] * len(runtime.domains)) for row in rows])
    served = score([(row.id, gates) for row, gates in zip(rows, gates_BD, strict=True)])
    return [
        AskedRow(row.id, row.domain, row.prompt, row.completion, b.tokens, b.mean, min(b.mean, s.mean), s.mean)
        for row, b, s in zip(rows, base, served, strict=True)
    ]
