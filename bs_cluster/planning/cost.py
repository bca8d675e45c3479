"""Bytes on disk and over the network, hours and money: what a plan's work comes to on its machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.planning.hardware import Hardware
from bs_cluster.planning.memory import WORD
from bs_cluster.planning.work import rounds, stack_rows, sweep_work, train_rows, training_work
from bs_cluster.records import Record
from bs_cluster.training.checkpoint import KEPT
from bs_cluster.training.sharding import passes

# Assumed: a token of a row, and an outcome, in compressed Parquet; bytes moved for a quantised weight that is
# dequantised (half read, two written, two read again by the product).
TOKEN_BYTES, OUTCOME_BYTES, DEQUANTISED_BYTES = 3, 12, 4.5


@dataclass(frozen=True)
class Volume(Record):
    """Bytes. ``store`` is what stays: stacks, claims and the combined directions of every closing, spans, rows and
    outcomes. ``checkpoints`` come on top while a round runs. ``node_disk`` are a base's files and a copy of all stacks;
    ``step_network`` goes in and out of a worker at each step, ``start_network`` into every node."""

    stacks: int
    claims: int
    spans: int
    rows: int
    outcomes: int
    checkpoints: int
    node_disk: int
    step_network: int
    start_network: int

    @property
    def store(self) -> int:
        return self.stacks + self.claims + self.spans + self.rows + self.outcomes


@dataclass(frozen=True)
class Made:
    """What a campaign's bytes are of: parameters of a ``stack`` and of the ``base``, bytes of the base that ZeRO 3
    shares out, projections with stacks, and bytes of the directions ``claimed`` before each domain and after the last.
    """

    stack: int
    base: int
    shared_out: int
    sites: int
    claimed: Sequence[int]


@dataclass(frozen=True)
class Speed:
    """Floating point operations a token: of a training step and of scoring, without a frozen stack, and of one more
    that fires. ``weights`` are those that stacks stand on, ``rest`` the base's others: the head, mostly."""

    train: float
    train_stack: float
    score: float
    score_stack: float
    weights: int
    rest: int


@dataclass(frozen=True)
class Cost(Record):
    """Seconds a step, hours by phase, and the price of the nodes that each phase holds."""

    step_s: float
    step_network_s: float
    training_h: float
    closing_h: float
    sweep_h: float
    answers_h: float
    router_h: float
    starting_h: float
    training_nodes: int
    sweep_nodes: int
    usd: float

    @property
    def hours(self) -> float:
        return self.training_h + self.closing_h + self.sweep_h + self.answers_h + self.router_h + self.starting_h


def volume_of(config: CampaignConfig, made: Made, row_tokens: int) -> Volume:
    count, workers, stack = rounds(config), config.training.num_workers, WORD * made.stack
    sweep = sweep_work(config, row_tokens)
    kept = sum(
        train_rows(config, domain) + config.data.validation_rows + config.data.sweep_rows for domain in config.domains
    )
    training = config.training
    reduced = passes(training, workers) if training.zero_stage >= 2 else 1
    gathered = 1 if training.zero_stage else 0
    base = 2 * passes(training, workers) * made.shared_out if training.zero_stage == 3 else 0  # forward and backward
    return Volume(
        stacks=count * stack,
        # A claim each, and before every domain but the first the directions of all so far.
        claims=made.claimed[-1] + sum(made.claimed[1:-1]),
        spans=len(config.domains) * made.sites * WORD * stack_rows(config) ** 2,
        rows=kept * row_tokens * TOKEN_BYTES,
        outcomes=2 * sweep.outcomes * OUTCOME_BYTES,
        checkpoints=(KEPT + 1) * 4 * stack if training.checkpoint_every_s else 0,
        node_disk=2 * made.base + count * stack,
        step_network=int(((2 * reduced + gathered) * stack + base) * (workers - 1) / workers),
        start_network=2 * made.base + count * stack,
    )


def cost_of(config: CampaignConfig, on: Hardware, speed: Speed, volume: Volume, row_tokens: int) -> Cost:
    """Every frozen stack fires while a later one trains, in the mean half of them all; under ``context: isolated``
    those of the domain itself."""
    training, sweep, gpus = config.training, config.sweep, on.node.gpus
    work, swept = training_work(config, row_tokens), sweep_work(config, row_tokens)
    own = work.rounds / len(config.domains)
    beside = (work.rounds - 1) / 2 if training.context == "cumulative" else (own - 1) / 2
    turns = 3 if training.gradient_checkpointing else 2
    unpacking = 0.0
    if config.base.quantization == "nf4" and not config.base.cache_dequantized:
        unpacking = DEQUANTISED_BYTES * speed.weights / on.memory_bandwidth
    tokens = training.per_device_batch * row_tokens
    per_pass = tokens * (speed.train + beside * speed.train_stack) / on.flops + turns * unpacking
    nodes = math.ceil(training.num_workers / gpus) if gpus else 1
    network = volume.step_network * min(training.num_workers, max(gpus, 1)) / on.network_bandwidth if nodes > 1 else 0.0
    step = passes(training, training.num_workers) * per_pass + network

    def scoring_h(rows: float, stacks: float, batch_tokens: int, processes: float) -> float:
        batch = max(1, batch_tokens // row_tokens)
        a_batch = batch * row_tokens * (speed.score + stacks * speed.score_stack) / on.flops + unpacking
        return math.ceil(rows / batch) * a_batch / processes / 3600

    evaluating = sweep.evaluators * (min(1.0, sweep.gpus_per_evaluator) or 1.0)
    closing = scoring_h(
        work.scored_rows + work.streamed_rows, work.rounds / 2, training.eval_batch_tokens, training.num_workers
    )
    sweeping = scoring_h(swept.outcomes, swept.active * own, sweep.batch_tokens, evaluating)
    sweeping += scoring_h(swept.prompts, 0, sweep.batch_tokens, evaluating)
    sweeping += scoring_h(swept.scored_rows, own, training.eval_batch_tokens, evaluating)
    a_token = ((DEQUANTISED_BYTES if unpacking else 2) * speed.weights + 2 * speed.rest) / on.memory_bandwidth
    answers = math.ceil(swept.answers / sweep.answer_batch) * sweep.answer_tokens * a_token / evaluating / 3600
    start, router = on.assumed.start_minutes / 60, on.assumed.router_minutes / 60
    sweep_nodes = math.ceil(sweep.evaluators * sweep.gpus_per_evaluator / gpus) if gpus else 1
    training_h = work.steps * step / 3600
    held = nodes * (training_h + closing + start) + max(1, sweep_nodes) * (sweeping + answers + router + start)
    return Cost(
        step_s=step,
        step_network_s=network,
        training_h=training_h,
        closing_h=closing,
        sweep_h=sweeping,
        answers_h=answers,
        router_h=router,
        starting_h=2 * start,
        training_nodes=nodes,
        sweep_nodes=max(1, sweep_nodes),
        usd=held * on.node.usd_hour,
    )
