"""Bytes on a training worker and on an evaluator, part by part: what lies there, and what the largest moment adds.

A stack learns in fp32. DeepSpeed's own part, read from its stage_1_and_2.py and engine.py (0.19), is the one thing that
is written down here: under ZeRO 1 and 2 the weights lie in one flat buffer on every rank, their master copies, the
optimizer's state and the averaged gradients in slices, one a rank; gradients pass through a bucket that is made before
backward. ZeRO 3 adds the base in parts (``stacks/sharded_base.py``). All else is asked of the code that does it
(``worker.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from bs_cluster.basis import Basis
from bs_cluster.config.rounds import SFT
from bs_cluster.config.schema import TrainingSection
from bs_cluster.planning.worker import Batch, ShapedWorker
from bs_cluster.records import Record
from bs_cluster.training.optimizer import build_optimizer
from bs_cluster.training.sharding import passes, zero_config

WORD = 4  # bytes of an fp32 number
# A tokenizer in memory, by word: Gemma's 262,144 take 274 MB. In the host's memory, which on a CPU is the only one.
TOKENIZER_WORD = 1000


@dataclass(frozen=True)
class Part(Record):
    """A name and its bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Footprint(Record):
    """``parts`` lie on the device for a round's length, of ``moments`` (forward and backward, the optimizer's step,
    validation …) the largest is added. ``host`` is in the host's memory beside a GPU; on a CPU there is one memory, and
    all of it is in ``parts`` and ``moments``. ``flops`` are those of a micro-batch's forward and backward."""

    parts: tuple[Part, ...]
    moments: tuple[Part, ...]
    host: tuple[Part, ...] = ()
    flops: int = 0

    @property
    def peak(self) -> int:
        return sum(part.bytes for part in self.parts) + self.largest.bytes

    @property
    def largest(self) -> Part:
        return max(self.moments, key=lambda moment: moment.bytes)

    @property
    def host_peak(self) -> int:
        return sum(part.bytes for part in self.host)


@dataclass(frozen=True)
class Sharded:
    """What a rank holds of the stack that learns, in bytes: on the device, or for what is offloaded, on the host.
    ``while_training`` comes and goes with each micro-batch, ``while_stepping`` with each optimizer step."""

    device: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    while_training: int = 0
    while_stepping: int = 0


def state_words(training: TrainingSection) -> int:
    """Numbers that the configured optimizer keeps for each of a parameter's: found by one step of it."""
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = build_optimizer({"stack_A": parameter}, training)
    parameter.grad = torch.ones(2, 3)
    optimizer.step()
    held = optimizer.state[parameter].values()
    return sum(isinstance(value, torch.Tensor) and value.shape == parameter.shape for value in held)


def sharded(training: TrainingSection, ranks: int, parameters: int, gpu: bool) -> Sharded:
    """ZeRO's share of a rank. On a CPU the optimizer's step makes two tensors of its slice; a GPU's is fused."""
    whole, states = WORD * parameters, state_words(training)
    own = whole if training.zero_stage == 0 else WORD * math.ceil(parameters / ranks)
    accumulates, stepping = passes(training, ranks) > 1, 0 if gpu else 2 * own
    if training.zero_stage == 0:
        # Gradients of a lone micro-batch come and go with its backward; all ranks' are then summed in a flat copy.
        held = {"gradients": whole} if accumulates else {}
        flat = min(whole, WORD * 500_000_000)
        step = max(flat, stepping) + (0 if accumulates else whole)
        return Sharded({**held, "optimizer state": states * own}, {}, 0, step)
    bucket = WORD * zero_config(training, ranks, parameters)["zero_optimization"]["reduce_bucket_size"]
    slices = {"master weights": own, "optimizer state": states * own}
    held = {}
    if accumulates:
        held = {"gradients": whole} if training.zero_stage == 1 else {"gradients": own}
    if training.offload_optimizer:
        return Sharded(held, {**slices, "offloaded gradients": own}, bucket, own)
    return Sharded({**held, **slices}, {}, bucket, own + stepping)


@dataclass(frozen=True)
class Answers:
    """So many prompts of ``prompt_tokens`` are answered together, by ``answer_tokens`` at most."""

    rows: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Situation:
    """What a worker has to hold beside the stack that learns: ``resident`` frozen ones, the last ``firing`` of which
    are on, ``parked`` ones in the host's memory, which all fire when the domain closes, and the directions claimed so
    far. ``batch`` is a micro-batch, ``scored`` a batch of validation, ``accumulated`` what a closing adds up beside its
    passes, ``answers`` what is generated at once, if anything. ``objective`` is the round's."""

    resident: int
    firing: int
    basis: Basis
    batch: Batch
    scored: Batch
    parked: int = 0
    accumulated: int = 0
    answers: Answers | None = None
    objective: str = SFT


def training_footprint(worker: ShapedWorker, training: TrainingSection, ranks: int, now: Situation) -> Footprint:
    """A worker that trains a stack, one of so many ``ranks``."""
    count = worker.stack_parameters
    worker.set_stacks(now.resident, now.firing)
    confined = worker.confine(now.basis)
    shard = sharded(training, ranks, count, worker.gpu)
    alone = training.zero_stage == 0 and passes(training, ranks) == 1
    packed = now.objective == SFT
    trained = worker.training_pass(now.batch, training.gradient_checkpointing, keep_gradients=alone, packed=packed)
    answered = answering(worker, now.answers)
    validated = worker.scoring_pass(now.scored)
    worker.confine(Basis())
    blocks, weights = worker.packed_bytes, WORD * count
    room = blocks // (now.resident + 1)
    every, parked = now.resident + now.parked + 1, now.parked * (room + worker.noise_bytes // 2)
    worker.set_stacks(every, every, learns=False)
    closed = worker.packed_bytes - blocks + worker.scoring_pass(now.scored).peak + now.accumulated
    # A checkpoint clones weights, snapshot and optimizer state whole, and safetensors serialises them twice.
    checkpoint = (3 + 2 * 4) * weights if training.checkpoint_every_s else 0
    in_parts = training.zero_stage == 3 and ranks > 1
    base, buffers = worker.base_share(ranks) if in_parts else (worker.base_bytes, 0)
    parts = {
        "base": base,
        "layers gathered": buffers,
        "base, dequantised": worker.cache_bytes,
        "frozen stacks": blocks - room + now.resident * worker.noise_bytes,
        "learning stack": weights + room,
        **shard.device,
        "claimed directions": confined,
    }
    moments = {
        f"forward and backward{'' if packed else ', ' + now.objective}": trained.peak + shard.while_training,
        "optimizer step": shard.while_stepping,
        "validation": validated.peak,
        "answering": answered,
        # The learner is gone by then, its stack one of all, and none is parked.
        "closing, all stacks on": closed - weights - sum(shard.device.values()) - (0 if worker.gpu else parked),
    }
    if in_parts:  # each rank loads it whole, before anything else is there
        moments["loading the base"] = max(0, worker.base_bytes - sum(parts.values()))
    host = {"tokenizer": TOKENIZER_WORD * worker.words, "best snapshot": weights, **shard.host}
    host["parked stacks"] = parked
    saving = "checkpoint, on rank 0"
    if worker.gpu:
        return Footprint(_parts(parts), _parts(moments), _parts({**host, saving: checkpoint}), trained.flops)
    moments |= {"a better snapshot": weights, saving: checkpoint}
    return Footprint(_parts({**parts, **host}), _parts(moments), (), trained.flops)


def with_most_on_the_host(chosen: Footprint, of: Sequence[Footprint]) -> Footprint:
    """``chosen``, and in the host's memory of each part the most that any has."""
    most: dict[str, int] = {}
    for part in (part for footprint in of for part in footprint.host):
        most[part.name] = max(part.bytes, most.get(part.name, 0))
    return replace(chosen, host=_parts(most))


def answering(worker: ShapedWorker, answers: Answers | None) -> int:
    """Bytes that generating takes: the prompts' forward with their keys and values, or those of whole answers, of which
    each token makes a layer's anew."""
    if answers is None:
        return 0
    prompts = worker.reading_pass(Batch(answers.rows, answers.prompt_tokens, 0)).peak
    begun, _ = worker.cache_of_answers(answers.rows, answers.prompt_tokens)
    ended, layer = worker.cache_of_answers(answers.rows, answers.prompt_tokens + answers.answer_tokens)
    return max(prompts + begun, ended + layer)


def evaluator_footprint(
    worker: ShapedWorker, *, stacks: int, scored: Batch, encoded: Batch, answers: Answers | None
) -> Footprint:
    """An evaluator with all ``stacks`` firing: a batch of the sweep, of prompts for the meta-router, or of answers."""
    worker.set_stacks(stacks, stacks, learns=False)
    parts = {
        "base": worker.base_bytes,
        "base, dequantised": worker.cache_bytes,
        "frozen stacks": worker.packed_bytes + stacks * worker.noise_bytes,
    }
    scores, states = worker.scoring_pass(scored), worker.encoding_pass(encoded)
    moments = {"scoring": scores.peak, "router states": states.peak, "answering": answering(worker, answers)}
    return Footprint(_parts(parts), _parts(moments), (), scores.flops)


def _parts(bytes_by_name: dict[str, int]) -> tuple[Part, ...]:
    return tuple(Part(name, size) for name, size in bytes_by_name.items() if size > 0)
