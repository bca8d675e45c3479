"""The sweep against the greedy search it replaces: prompts scored per second.

Greedy, as the paper words it: for each prompt its base loss, each domain alone, then whichever domain helps most is
added as long as one does; one prompt at a time. The published script scores a whole batch for each of these.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks import textbook
from benchmarks.settings import Settings
from benchmarks.table import Table, Target
from benchmarks.variants import ALPHA, DOMAIN_SIZE, EXPERTS, RANK, TOP_K
from bs_cluster.base.load import load_base
from bs_cluster.config.schema import BaseSection, StackSection, SweepSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.inference.scoring import score_batch, score_routed
from bs_cluster.inference.stacked import StackedBase, stack_config
from bs_cluster.records import RowLoss, StackId
from bs_cluster.stacks.model import SEVEN_PROJECTIONS
from bs_cluster.sweep.combinations import mask_weights
from bs_cluster.sweep.outcomes import CONFLICT_TOLERANCE, OutcomeTable
from bs_cluster.sweep.plan import plan_work
from bs_cluster.sweep.search import next_requests

PROMPTS, PROMPT_TOKENS, COMPLETION_TOKENS = 4, 40, 40
BATCH_TOKENS = 1024
GREEDY_DOMAINS, GREEDY_BATCH = 5, 8
BATCHED_DOMAINS = 3
MAX_DOMAINS = 8
STOP_BELOW = 0.01  # nats; the paper's threshold

Score = Callable[[Sequence[EncodedRow], Sequence[Sequence[float]]], list[RowLoss]]


class RandomEvaluator:
    """An evaluator like the product's, whose stacks are random instead of read from a store."""

    def __init__(self, base: str, device: str, domains: Sequence[str], threads: int):
        if threads:
            torch.set_num_threads(threads)
        self.domains = tuple(domains)
        section = BaseSection(model=base, compute_dtype="bfloat16", cache_dequantized=device == "cpu")
        self.stacked = StackedBase.load(section, device)
        sizes = StackSection(rank=RANK, experts=EXPERTS, top_k=TOP_K, alpha=ALPHA)
        for position, domain in enumerate(domains):
            for number in range(1, DOMAIN_SIZE + 1):
                config = stack_config(sizes, StackId(domain, number), position)
                name = self.stacked.begin(config, seed=position * DOMAIN_SIZE + number)
                for site in self.stacked.tuner.sites:
                    nn.init.normal_(site.stack_B[name], std=1e-3)
        self.stacked.fire(self.stacked.names)
        self.stacked.tuner.eval()

    def score(self, rows: Sequence[EncodedRow], weights: Sequence[Sequence[float]]) -> list[RowLoss]:
        return score_routed(self.stacked, rows, weights, self.domains)


def measure(settings: Settings) -> list[Table]:
    evaluator = RandomEvaluator(settings.base, settings.device, _domains(MAX_DOMAINS), settings.threads)
    return [_searches(evaluator, settings), _batchings(evaluator, settings), _against_greedy(settings)]


def prompts(vocabulary: int, count: int) -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(0)
    length = PROMPT_TOKENS + COMPLETION_TOKENS
    ids_BT = torch.randint(5, vocabulary, (count, length), generator=generator).tolist()
    return [EncodedRow(tuple(ids), PROMPT_TOKENS, f"row{i}", "domain0") for i, ids in enumerate(ids_BT)]


def _domains(count: int) -> list[str]:
    return [f"domain{d}" for d in range(count)]


def _search(
    score: Score, rows: Sequence[EncodedRow], domains: Sequence[str], search: str, batch_tokens: int = BATCH_TOKENS
) -> tuple[OutcomeTable, float]:
    """What was measured, and seconds, in one process, with the product's own plan."""
    settings = SweepSection(search=search, batch_tokens=batch_tokens)
    table = OutcomeTable([row.id for row in rows], [row.domain for row in rows], domains)
    lengths = [len(row.input_ids) for row in rows]
    started = time.perf_counter()
    while len(requests := next_requests(table, settings)):
        for batch in plan_work(requests, lengths, settings.batch_tokens):
            weights = [mask_weights(mask, len(domains)) for _, mask in batch.requests]
            losses = score([rows[row] for row, _ in batch.requests], weights)
            for (row, mask), loss in zip(batch.requests, losses, strict=True):
                table.record(row, mask, loss)
    return table, time.perf_counter() - started


def _searches(evaluator: RandomEvaluator, settings: Settings) -> Table:
    rows = prompts(_vocabulary(evaluator), PROMPTS)
    table = Table(
        f"Sweep, one evaluator: {settings.base}",
        ("domains", "search", "combinations a prompt", "prompts/s", "rows × combinations/s"),
        note=f"{PROMPTS} prompts of {PROMPT_TOKENS}+{COMPLETION_TOKENS} tokens, two stacks a domain, batches of "
        f"{BATCH_TOKENS} tokens.",
    )

    def scored_among(domains: Sequence[str]) -> Score:
        return lambda rows, weights: score_routed(evaluator.stacked, rows, weights, domains)

    _search(scored_among(_domains(2)), rows, _domains(2), "exhaustive")  # warm-up
    for count in range(3, MAX_DOMAINS + 1):
        for search in ("exhaustive", "adaptive") if count > 3 else ("exhaustive",):
            if search == "exhaustive" and count > 6:
                continue
            outcomes, seconds = _search(scored_among(_domains(count)), rows, _domains(count), search)
            measured = len(outcomes)
            table.rows.append((count, search, measured / len(rows), len(rows) / seconds, measured / seconds))
    return table


def _batchings(evaluator: RandomEvaluator, settings: Settings) -> Table:
    """How far a row's losses move with the rows that it shares a batch with."""
    domains = _domains(BATCHED_DOMAINS)
    rows = [
        replace(row, input_ids=row.input_ids[3 * i :], prompt_length=PROMPT_TOKENS - 3 * i)  # padded in company
        for i, row in enumerate(prompts(_vocabulary(evaluator), PROMPTS))
    ]
    table = Table(
        f"The same sweep in other batches, D = {BATCHED_DOMAINS}: {settings.base}",
        ("tokens a batch", "rows × combinations/s", "largest difference, nats per token"),
        note=f"Against the first line. Prompts of {PROMPT_TOKENS - 3 * (PROMPTS - 1)} to {PROMPT_TOKENS} tokens, "
        "padded when together; random stacks on random tokens.",
    )

    def score(some: Sequence[EncodedRow], weights: Sequence[Sequence[float]]) -> list[RowLoss]:
        return score_routed(evaluator.stacked, some, weights, domains)

    length = PROMPT_TOKENS + COMPLETION_TOKENS
    found: list[np.ndarray] = []
    for batch_tokens in (BATCH_TOKENS, 4 * length, length):
        outcomes, seconds = _search(score, rows, domains, "exhaustive", batch_tokens)
        found.append(outcomes.loss_BC(range(1 << len(domains))))
        apart = float(abs(found[-1] - found[0]).max())
        table.rows.append((batch_tokens, len(outcomes) / seconds, apart))
    apart = max(row[2] for row in table.rows)
    table.note += f" Losses are {found[0].mean():.1f} nats on average."
    table.targets = [Target("difference of a loss between batchings, nats per token", apart, CONFLICT_TOLERANCE)]
    return table


def greedy(score: Score, row: EncodedRow, domains: int, batch: Sequence[EncodedRow]) -> tuple[int, int]:
    """The subset that greedy search finds for ``row``, and the evaluations it took. ``batch`` is scored with it each
    time, as the published script does; only ``row``'s loss is used."""
    evaluations = 0

    def loss(mask: int) -> float:
        nonlocal evaluations
        evaluations += 1
        rows = [row, *batch]
        return score(rows, [mask_weights(mask, domains)] * len(rows))[0].mean

    best_mask, best = 0, loss(0)
    while best_mask != (1 << domains) - 1:
        found = {best_mask | 1 << d: loss(best_mask | 1 << d) for d in range(domains) if not best_mask >> d & 1}
        mask = min(found, key=lambda candidate: found[candidate])
        if found[mask] >= best - STOP_BELOW:
            break
        best_mask, best = mask, found[mask]
    return best_mask, evaluations


def _against_greedy(settings: Settings) -> Table:
    domains = _domains(GREEDY_DOMAINS)
    ours = RandomEvaluator(settings.base, settings.device, domains, settings.threads)
    rows = prompts(_vocabulary(ours), GREEDY_BATCH)

    def exhaustive() -> tuple[float, float]:
        outcomes, seconds = _search(ours.score, rows, domains, "exhaustive")
        return len(outcomes) / len(rows), seconds / len(rows)

    def one_by_one(score: Score, batch: int) -> tuple[float, float]:
        some = rows[: 2 if batch else 4]
        started = time.perf_counter()
        used = [greedy(score, row, GREEDY_DOMAINS, rows[-batch:] if batch else [])[1] for row in some]
        return statistics.mean(used), (time.perf_counter() - started) / len(some)

    exhaustive()
    book = textbook_score(settings)
    measured = {
        "exhaustive, ours": exhaustive(),
        "greedy a prompt at a time, on our layer": one_by_one(ours.score, 0),
        "greedy a prompt at a time, textbook layer": one_by_one(book, 0),
        f"greedy re-scoring a batch of {GREEDY_BATCH} (as published), textbook layer": one_by_one(
            book, GREEDY_BATCH - 1
        ),
    }
    first = measured["exhaustive, ours"][1]
    table = Table(
        f"Exhaustive sweep against greedy search, D = {GREEDY_DOMAINS}: {settings.base}",
        ("what", "evaluations a prompt", "prompts/s", "ours / it"),
        [(name, count, 1 / seconds, seconds / first) for name, (count, seconds) in measured.items()],
        note="Two random stacks a domain. Greedy sees the few combinations that the second column counts, the "
        "exhaustive sweep all 32.",
    )
    table.targets = [
        Target(f"prompts/s of the exhaustive sweep / {name}", seconds / first, 8.0, at_least=True)
        for name, (_, seconds) in list(measured.items())[2:]
    ]
    return table


def textbook_score(settings: Settings) -> Score:
    """Scoring with the textbook layer: every stack of an active domain one after another, experts materialised."""
    base = load_base(BaseSection(model=settings.base, compute_dtype="bfloat16"), device=settings.device)
    sizes = {"rank": RANK, "experts": EXPERTS, "top_k": TOP_K, "scale": ALPHA / RANK**0.5}
    textbook.wrap(base.model, set(SEVEN_PROJECTIONS), GREEDY_DOMAINS * DOMAIN_SIZE, False, **sizes)
    sites = [module for module in base.model.modules() if isinstance(module, textbook.TextbookSite)]
    everything = [list(site.stacks) for site in sites]
    plain = StackedBase(base, cache_dequantized=False)

    def score(rows: Sequence[EncodedRow], weights: Sequence[Sequence[float]]) -> list[RowLoss]:
        on = {d * DOMAIN_SIZE + n for d, weight in enumerate(weights[0]) if weight for n in range(DOMAIN_SIZE)}
        for site, stacks in zip(sites, everything, strict=True):
            site.stacks = nn.ModuleList(stack for number, stack in enumerate(stacks) if number in on)
        return score_batch(plain, rows)

    return score


def _vocabulary(evaluator: RandomEvaluator) -> int:
    return evaluator.stacked.base.model.config.get_text_config().vocab_size
