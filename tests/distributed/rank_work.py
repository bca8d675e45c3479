"""What ranks do in these tests: the worker's own steps on a session, without Ray around them.

Everything here returns plain values and CPU tensors, so that the test process can compare them.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors.torch import load

from bs_cluster.adapter_format import WEIGHTS_NAME
from bs_cluster.basis import Basis
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.encoding import encode_domains
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.coordinator import Coordinator
from bs_cluster.coordinator.work import Work
from bs_cluster.data.batch import collate_packed
from bs_cluster.estimates import token_mean
from bs_cluster.events import Event, RoundResumed, StepDone
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.quiet import quieten
from bs_cluster.records import CloseDomain, DomainRecord, RoundOutcome, TrainRound
from bs_cluster.store import Store
from bs_cluster.training import loop, objective
from bs_cluster.training.closing import close_domain
from bs_cluster.training.commit_rule import split_validation
from bs_cluster.training.objective import NextToken
from bs_cluster.training.optimizer import Rate
from bs_cluster.training.ranks import sum_over_ranks
from bs_cluster.training.round import train_round
from bs_cluster.training.session import Session
from bs_cluster.training.state import RoundState
from bs_cluster.training.zero import Learner

Tensors = dict[str, torch.Tensor]


@dataclass
class Round:
    """One round's outcome, its curve and the stack as stored (both empty if it was not committed)."""

    outcome: RoundOutcome
    history: list[dict[str, float]]
    stack: Tensors
    selection_loss: float = float("nan")  # of the stored stack on the rows that chose its snapshot


class DrivenByHand:
    """A campaign driven by hand on every rank; rank 0 writes, as the coordinator would."""

    def __init__(self, config: CampaignConfig):
        self.config = config
        self.events: list[Event] = []
        self.store = Store(config.store.uri, config.campaign)
        rows = encode_domains(Campaign.of(config))
        stacked = StackedBase.load(config.base, "cpu")
        self.session = Session(config, stacked, self.store, rows.__getitem__, self.events.append)
        self.coordinator = Coordinator(config, lambda data: data) if dist.get_rank() == 0 else None
        self.group = self.coordinator.register() if self.coordinator else ""

    def step(self) -> Round | DomainRecord | None:
        """The next step of the curriculum, done and committed; None when all is done."""
        work: Work = from_rank_0(self.coordinator.next_work(self.group) if self.coordinator else None)
        step, basis = work.step, work.basis
        if isinstance(step, TrainRound):
            outcome, manifest = train_round(self.session, step, Basis.from_bytes(basis.handle) if basis else None)
            if self.coordinator and manifest:
                self.coordinator.commit(self.group, manifest, outcome)
            elif self.coordinator:
                self.coordinator.reject(self.group, outcome)
            dist.barrier()
            if manifest is None:
                return Round(outcome, [], {})
            lines = self.store.get_bytes(manifest.file("history.jsonl").sha256).decode().splitlines()
            stack = load(self.store.get_bytes(manifest.file(WEIGHTS_NAME).sha256))
            share = self.config.training.selection_share
            selection, _ = split_validation(self.session.rows(step.stack.domain).validation, share)
            stored = token_mean(self.session.score(selection))
            return Round(outcome, [json.loads(line) for line in lines], stack, stored)
        if isinstance(step, CloseDomain):
            outcomes = self.coordinator.outcomes_of(step.domain) if self.coordinator else None
            record = close_domain(self.session, step, from_rank_0(outcomes))
            if self.coordinator:
                self.coordinator.close(self.group, record)
            dist.barrier()
            return record
        return None

    def all_steps(self) -> list[Round | DomainRecord]:
        done = []
        while (result := self.step()) is not None:
            done.append(result)
        return done

    def claim(self, record: DomainRecord) -> Basis:
        return Basis.from_bytes(self.store.get_bytes(record.basis)) if record.basis else Basis()

    def validation_losses(self, domain: str) -> list[tuple[float, int]]:
        rows = self.session.rows(domain).validation
        return [(loss.nll, loss.tokens) for loss in self.session.score(rows)]


def first_round(config: CampaignConfig) -> Round:
    result = DrivenByHand(config).step()
    assert isinstance(result, Round)
    return result


def whole_campaign(config: CampaignConfig) -> dict[str, Any]:
    """Every step of it: rounds by name, records and claims by domain."""
    campaign, parked, results = DrivenByHand(config), {}, []
    while (result := campaign.step()) is not None:
        results.append(result)
        if isinstance(result, Round):
            parked[result.outcome.stack.name] = campaign.session.stacked.tuner.composition.parked
    records = {result.domain: result for result in results if isinstance(result, DomainRecord)}
    return {
        "rounds": {result.outcome.stack.name: result for result in results if isinstance(result, Round)},
        "records": records,
        "parked": parked,
        "claims": {domain: campaign.claim(record) for domain, record in records.items()},
        "metrics": {ref.stack.name: manifest.metrics for ref, manifest in campaign.store.stacks()},
        "base_losses": {
            domain: [(x.nll, x.tokens) for x in got] for domain, got in campaign.session.base_losses.items()
        },
        "weights": {ref.stack.name: manifest.file(WEIGHTS_NAME).sha256 for ref, manifest in campaign.store.stacks()},
        "verify": [problem.what for problem in campaign.store.verify().problems],
    }


def held_of_the_base(config: CampaignConfig) -> dict[str, int]:
    """Bytes of weights that a rank holds after its first round: of the projections as they are between two passes, of
    the parts that it keeps of them, and of all other weights."""
    campaign = DrivenByHand(config)
    sharded = campaign.session.sharded
    campaign.step()

    def bytes_of(tensors) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    tuner = campaign.session.stacked.tuner
    within = [site.base_layer.weight for site in tuner.sites]
    known = {id(weight) for weight in within}
    others = [p for name, p in tuner.model.named_parameters() if id(p) not in known and "stack_" not in name]
    return {
        "projections": bytes_of(within),
        "parts": bytes_of(sharded.parts if sharded else []),
        "rest": bytes_of(others),
    }


def poisoned_round(config: CampaignConfig, steps: list[int], what: str) -> Round:
    """The first round, with a loss or only a gradient that is NaN on the last rank at these steps (from 1)."""
    clean, step = (NextToken.loss, Learner.backward), 0

    def poisoned(value: torch.Tensor) -> torch.Tensor:
        return value * float("nan") if step in steps and dist.get_rank() == dist.get_world_size() - 1 else value

    def loss(*arguments):
        nonlocal step
        step += 1  # one micro-batch a step on each of two ranks
        return poisoned(clean[0](*arguments)) if what == "loss" else clean[0](*arguments)

    def backward(learner, share):
        return clean[1](learner, poisoned(share))

    NextToken.loss, Learner.backward = loss, backward
    try:
        return first_round(config)
    finally:
        NextToken.loss, Learner.backward = clean


def rejected_round(good: CampaignConfig, bad: CampaignConfig) -> dict[str, Any]:
    """A good first round, then a second one under the bad config: what the session's model is before and after."""
    campaign = DrivenByHand(good)
    first = campaign.step()
    session = campaign.session

    def state() -> dict[str, Any]:
        session.stacked.fire(session.stacked.names)
        # As computed with: a rank that has not scored a batch yet still holds a stack in fp32, unpacked.
        held = session.stacked.tuner.state_dict().items()
        tensors = {key: value.to(torch.bfloat16).clone() for key, value in held if "stack_" in key}
        return {"losses": campaign.validation_losses("aa"), "stacks": tensors, "names": session.stacked.names}

    before = state()
    session.config = bad
    second = campaign.step()
    after = state()
    session.config = good
    return {"first": first, "before": before, "second": second, "after": after, "then": campaign.step()}


class Killed(Exception):
    pass


@dataclass
class Part:
    """What one process of ranks did of a round: its end, if it came to one, the step it went on after, and the units
    that this rank took, as (step, place in the global batch, ids of its rows)."""

    ended: Round | None
    resumed_after: int
    taken: list[tuple[int, int, tuple[str, ...]]]


def part_of_a_round(config: CampaignConfig, steps: int | None = None) -> Part:
    """The first round from where it was left; it ends, as by a crash, after so many steps made here."""
    made: list[list[tuple[int, tuple[str, ...]]]] = []
    clean = objective.micro_batches

    def micro_batches(*arguments):
        if len(made) == steps:
            raise Killed
        mine = clean(*arguments)
        made.append(
            [
                (micro.place + i, tuple(row.id for row in unit))
                for micro in mine
                if micro.counts
                for i, unit in enumerate(micro.units)
            ]
        )
        return mine

    campaign, ended = DrivenByHand(config), None
    objective.micro_batches = micro_batches
    try:
        ended = campaign.step()
    except Killed:
        pass
    finally:
        objective.micro_batches = clean
    after = sum(event.step for event in campaign.events if isinstance(event, RoundResumed))
    # A rank that is not the first reports nothing, and must have gone on from the same step.
    after = from_rank_0(after)
    if ended is not None:
        assert isinstance(ended, Round)
        held = [thing for thing in gc.get_objects() if isinstance(thing, DeepSpeedEngine)]
        assert not held, "a round left its engine behind"
    return Part(ended, after, [(after + i, *unit) for i, units in enumerate(made, start=1) for unit in units])


def killed_and_resumed(config: CampaignConfig, steps: int) -> list[Part]:
    """Both parts in one process, at one world size."""
    return [part_of_a_round(config, steps), part_of_a_round(config)]


def gradient_norms(config: CampaignConfig) -> list[tuple[float, float]]:
    """Of each step of the first round: the norm that the learner tells, and that of the gradient which autograd alone,
    without the engine, gives for the same global batch."""
    found: list[tuple[float, float]] = []
    sums: list[torch.Tensor] = []
    in_flight: list[Any] = []
    campaign = DrivenByHand(config)
    clean = (NextToken.loss, Learner.backward, Learner.gradient_norm)

    def loss(nexts, learning, micro):
        in_flight[:] = [micro, clean[0](nexts, learning, micro)]
        return in_flight[1]

    def backward(learning, share):
        micro, engines = in_flight
        batch = collate_packed([row for unit in micro.units for row in unit])
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
        total = campaign.session.stacked.tuner(**inputs, completion_labels=batch["labels"]).sum() * micro.counts
        of_the_step = total * float(share / engines) if micro.counts else total * 0
        gradients = torch.autograd.grad(of_the_step, list(learning.parameters.values()))
        sums[:] = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else gradients
        return clean[1](learning, share)

    def gradient_norm(learning):
        told = clean[2](learning)
        flat = torch.cat([gradient.double().flatten() for gradient in sums])
        found.append((told, float(sum_over_ranks(flat).norm()) / dist.get_world_size()))
        sums.clear()
        return told

    NextToken.loss, Learner.backward, Learner.gradient_norm = loss, backward, gradient_norm
    try:
        campaign.step()
    finally:
        NextToken.loss, Learner.backward, Learner.gradient_norm = clean
    return found


@dataclass
class Watched:
    """A round with what the guard made of its steps (by step), the steps at which the parent was asked, and how the
    state was right after each restore and where the step after it led."""

    round: Round
    verdicts: dict[int, str]
    asked: list[int]
    restores: list[dict[str, Any]]


def watched_round(config: CampaignConfig, before: int = 0, leap_at: int | None = None) -> Watched:
    """The round after ``before`` others; in its step ``leap_at`` the rate is a thousand times the schedule's."""
    asked: list[int] = []
    restores: list[dict[str, Any]] = []
    state: RoundState | None = None
    best: Tensors = {}
    clean = (Rate.set, RoundState.restore, loop.loss_of_parent)

    def set_rate(rate, step, restored_at):
        if restores and "moved" not in restores[-1] and restored_at != step - 1:
            now = state.learner.weights()
            restores[-1]["moved"] = max(float((now[name] - best[name]).abs().max()) for name in now)
        full = clean[0](rate, step, restored_at)
        if step == leap_at:
            for group in rate._optimizer.param_groups:
                group["lr"] *= 1000
        return full

    def restore(self):
        nonlocal state, best
        state, best = self, self.best.weights
        fractions_PE = self.balance.fraction_PE.clone()
        clean[1](self)
        weights = self.learner.weights()
        kept = self.learner.state()
        restores.append(
            {
                "step": self.step,
                "best_step": self.best.step,
                "weights_back": all(torch.equal(weights[name], held) for name, held in self.best.weights.items()),
                "fractions_had_moved": not torch.equal(fractions_PE, self.best.fraction_PE),
                "fractions_back": torch.equal(self.balance.fraction_PE, self.best.fraction_PE),
                "optimizer_fresh": len(kept) > 0 and not any(tensor.any() for tensor in kept.values()),
            }
        )

    def loss_of_parent(*arguments):
        asked.append(sum(isinstance(event, StepDone) for event in campaign.events) + 1)
        return clean[2](*arguments)

    campaign = DrivenByHand(config)
    for _ in range(before):
        campaign.step()
    campaign.events.clear()
    Rate.set, RoundState.restore, loop.loss_of_parent = set_rate, restore, loss_of_parent
    try:
        done = campaign.step()
    finally:
        Rate.set, RoundState.restore, loop.loss_of_parent = clean
    assert isinstance(done, Round)
    steps = [event for event in campaign.events if isinstance(event, StepDone)]
    return Watched(done, {event.step: event.verdict for event in steps}, asked, restores)


def several(jobs: dict[str, tuple[Callable[..., Any], tuple]]) -> dict[str, Any]:
    """Many of the above in one process, by name: processes that import DeepSpeed and TRL cost more than rounds."""
    quieten()
    return {name: function(*copy.deepcopy(arguments)) for name, (function, arguments) in jobs.items()}


def from_rank_0(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
