"""What a campaign computes: rounds, steps, tokens, passes of validation and of closing, the sweep's outcomes, answers.

Counts come from the functions that make the work: ``train_batches``' cut, ``split_validation``, ``plan_work``,
``most_outcomes``. What the config does not say is assumed and told: how long rows are, how many a source has, that
every round is trained and committed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bs_cluster.config.identity import curriculum, effective_domain, most_stacks
from bs_cluster.config.schema import CampaignConfig, DomainSection
from bs_cluster.records import Record
from bs_cluster.report.record import ANSWER_MODES
from bs_cluster.sweep.combinations import all_masks
from bs_cluster.sweep.plan import plan_work
from bs_cluster.sweep.search import first_outcomes, most_outcomes, opening, search_kind
from bs_cluster.training.commit_rule import split_validation

ASSUMED_ROWS = 10_000  # of a source that does not say how many it gives
SAMPLE_ROWS = 64  # whose batches stand for those of a sweep


@dataclass(frozen=True)
class Training(Record):
    """Over the campaign, if every round is trained to its end and committed. ``scored_rows`` are those of validation:
    a round's own, and at each closing every closed domain's. ``streamed_rows`` pass once more at their domain's
    closing. ``tokens`` is the most that steps can take: each row is as long as it may be."""

    rounds: int
    steps: int
    tokens: int
    scored_rows: int
    streamed_rows: int


@dataclass(frozen=True)
class Sweep(Record):
    """``outcomes`` is the most that the search takes; ``active`` how many domains' stacks a batch pays for, in the
    mean. ``prompts`` are encoded for the meta-router, ``answers`` generated."""

    rows: int
    search: str
    outcomes: int
    batches: int
    active: float
    prompts: int
    scored_rows: int
    answers: int


def training_work(config: CampaignConfig, row_tokens: int) -> Training:
    rounds = steps = scored = streamed = tokens = 0
    training, data = config.training, config.data
    selection, decision = map(len, split_validation(range(data.validation_rows), training.selection_share))
    for closed, name in enumerate(curriculum(config)):
        domain = effective_domain(config, name)
        aligned = [entry for entry in domain.rounds if entry.aligned]
        own, most = domain.steps or 0, most_stacks(config, name) - len(aligned)
        rounds, steps = rounds + most + len(aligned), steps + own * most + sum(entry.steps for entry in aligned)
        tokens += own * most * training.global_batch * row_tokens
        tokens += sum(entry.steps * entry.rows_of_a_step * row_tokens for entry in aligned)
        # A round: the parent on all rows, the base on those that decide, every validation, and the end.
        scored += most * (data.validation_rows + 2 * decision + math.ceil(own / training.eval_every) * selection)
        # A closing: the domain alone, then for each closed one alone and with all stacks; the base once each.
        scored += data.validation_rows * (1 + 2 * (closed + 1))
        streamed += train_rows(config, domain)
    return Training(rounds, steps, tokens, scored, streamed)


def rounds(config: CampaignConfig) -> int:
    """Stacks in all, if every round is committed."""
    return sum(most_stacks(config, name) for name in curriculum(config))


def stack_rows(config: CampaignConfig) -> int:
    """Rank rows of a domain's stacks together, M."""
    most = max(most_stacks(config, name) for name in curriculum(config))
    return most * config.stack.experts * config.stack.rank


def train_rows(config: CampaignConfig, domain: DomainSection) -> int:
    """Training rows of a domain at most."""
    given = sum(source.take or ASSUMED_ROWS for source in domain.sources)
    return min(given, config.data.train_rows or given)


def sweep_work(config: CampaignConfig, row_tokens: int) -> Sweep:
    settings, domains = config.sweep, len(config.domains)
    unowned = sum(kind.rows for kind in (*settings.mixed, *settings.foreign))
    rows = domains * config.data.sweep_rows + unowned
    per_row = most_outcomes(settings, domains)
    sample = min(SAMPLE_ROWS, rows)
    batches = plan_work(_requests(config, sample), [row_tokens] * sample, settings.batch_tokens)
    scored = sum(batch.padded_tokens for batch in batches)
    active = sum(batch.padded_tokens * batch.active_mask.bit_count() for batch in batches) / scored
    groups = domains + len(settings.mixed) + len(settings.foreign)
    return Sweep(
        rows=rows,
        search=search_kind(settings, domains),
        outcomes=rows * per_row,
        batches=math.ceil(len(batches) * rows / sample),
        active=active,
        prompts=domains * config.router.anchor_prompts + rows,
        scored_rows=domains * config.data.validation_rows,
        answers=len(ANSWER_MODES) * settings.answer_rows * groups,
    )


def _requests(config: CampaignConfig, rows: int) -> np.ndarray:
    """(row index, mask) pairs such as a sweep of so many rows would make; an adaptive search goes on, after its
    opening, around small combinations, here drawn at random."""
    domains, settings = len(config.domains), config.sweep
    if search_kind(settings, domains) == "exhaustive":
        masks = np.array([[*all_masks(domains)]] * rows, dtype=np.int64)
    else:
        draw = np.random.default_rng(0)
        later = most_outcomes(settings, domains) - first_outcomes(settings, domains)
        begun = np.tile(opening(domains), (rows, 1))
        two_or_three = np.zeros((rows, max(later, 0)), dtype=np.int64)
        for _ in range(3):
            two_or_three |= 1 << draw.integers(0, domains, two_or_three.shape)
        masks = np.concatenate([begun, two_or_three], axis=1)
    return np.stack([np.arange(rows).repeat(masks.shape[1]), masks.flatten()], axis=1)
