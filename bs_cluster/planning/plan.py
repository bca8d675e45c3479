"""A campaign's plan, from its config alone: what it is made of, what it takes, what does not fit and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from bs_cluster.basis import Basis
from bs_cluster.config.identity import curriculum, most_stacks, settings_of
from bs_cluster.config.rounds import DPO, GRPO, RoundSection
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.planning.cost import Cost, Made, Speed, Volume, cost_of, volume_of
from bs_cluster.planning.fit import Misfit, misfits, with_settings
from bs_cluster.planning.hardware import Assumed, Hardware, Node
from bs_cluster.planning.memory import (
    WORD,
    Answers,
    Footprint,
    Situation,
    evaluator_footprint,
    training_footprint,
    with_most_on_the_host,
)
from bs_cluster.planning.room import Room, basis_bytes, claims, room
from bs_cluster.planning.work import Sweep, Training, rounds, stack_rows, sweep_work, training_work
from bs_cluster.planning.worker import Batch, ShapedWorker
from bs_cluster.records import Record
from bs_cluster.stacks.nullspace import OVERSAMPLE

STAGES = (0, 1, 2, 3)
GROWTH = (10, 20, 50)  # domains, beside as many as the config has
LOOKED_AHEAD = 200  # domains among which the first is sought that finds no room


@dataclass(frozen=True)
class Model(Record):
    """``base_bytes`` as loaded; a stack has ``stack_parameters``, takes ``stack_bytes`` in the store (fp32) and
    ``stack_resident`` on a device once frozen; ``claim_bytes`` is the most that the first domain claims."""

    base: str
    base_parameters: int
    base_bytes: int
    sites: int
    stack_parameters: int
    stack_bytes: int
    stack_resident: int
    claim_bytes: int


@dataclass(frozen=True)
class Grown(Record):
    """The same campaign with so many domains: its last stack's worker, its evaluator, its store, its time and price."""

    domains: int
    worker_bytes: int
    evaluator_bytes: int
    store_bytes: int
    hours: float
    usd: float


@dataclass(frozen=True)
class Plan(Record):
    """``stages`` are the workers of the last stack, by ZeRO stage; the config's own is ``worker``. ``usable`` bytes a
    GPU's tensors may hold, or those of a worker's share of a machine without one."""

    campaign: str
    workers: int
    node: Node
    assumed: Assumed
    usable: int
    row_tokens: int
    completion_tokens: int
    model: Model
    worker: Footprint
    stages: tuple[Footprint, ...]
    evaluator: Footprint
    room: Room
    training: Training
    sweep: Sweep
    volume: Volume
    cost: Cost
    growth: tuple[Grown, ...]
    misfits: tuple[Misfit, ...]


def make_plan(
    config: CampaignConfig, on: Hardware, row_tokens: int | None = None, completion_tokens: int | None = None
) -> Plan:
    """``row_tokens`` is how long a row is in the mean and ``completion_tokens`` how many of them are learned and scored
    (all but the first), for time; memory is planned for rows as long as they may be.

    Raises BaseModelError where the base's configuration cannot be had.
    """
    planner = Planner(config, on, row_tokens, completion_tokens)
    now = planner.whole(config)
    stages = {
        stage: planner.worker_of(with_settings(config, {"training.zero_stage": stage}))
        for stage in STAGES
        if stage != config.training.zero_stage
    }
    stages[config.training.zero_stage] = now.worker
    usable = on.usable(config.training.num_workers)
    more = [count for count in GROWTH if count > len(config.domains)]
    return Plan(
        campaign=config.campaign,
        workers=config.training.num_workers,
        node=on.node,
        assumed=on.assumed,
        usable=usable,
        row_tokens=planner.row_tokens,
        completion_tokens=planner.completion_tokens,
        model=planner.model(),
        worker=now.worker,
        stages=tuple(stages[stage] for stage in STAGES),
        evaluator=now.evaluator,
        room=room(claims(planner.widths, config.null_space, stack_rows(config), LOOKED_AHEAD)),
        training=training_work(config, planner.row_tokens),
        sweep=sweep_work(config, planner.row_tokens),
        volume=now.volume,
        cost=now.cost,
        growth=(_grown(len(config.domains), now), *(planner.grown(config, count) for count in more)),
        misfits=tuple(misfits(config, on, usable, now.worker, now.evaluator, now.volume, planner.worker_of)),
    )


@dataclass(frozen=True)
class Whole:
    """What is planned for one config."""

    worker: Footprint
    evaluator: Footprint
    volume: Volume
    cost: Cost


class Planner:
    """Plans for configs that share a base and a stack's shape: the model of shapes is made once."""

    def __init__(
        self, config: CampaignConfig, on: Hardware, row_tokens: int | None = None, completion_tokens: int | None = None
    ):
        self.on, self.row_tokens = on, row_tokens or config.data.max_length
        self.completion_tokens = completion_tokens or self.row_tokens - 1
        self.shaped = ShapedWorker(config, gpu=bool(on.node.gpus))
        self.config = config
        self.widths = self.shaped.widths()
        self.stack_parameters = self.shaped.stack_parameters

    def model(self) -> Model:
        self.shaped.set_stacks(1, 1, learns=False)
        first = self._claims(self.config, 1)[-1]
        return Model(
            base=self.config.base.model,
            base_parameters=self.shaped.base_parameters,
            base_bytes=self.shaped.base_bytes,
            sites=len(self.widths),
            stack_parameters=self.stack_parameters,
            stack_bytes=WORD * self.stack_parameters,
            stack_resident=self.shaped.packed_bytes + self.shaped.noise_bytes,
            claim_bytes=basis_bytes(first),
        )

    def worker_of(self, config: CampaignConfig) -> Footprint:
        """The training worker at the moment that takes the most of a device, whichever round that is of; beside it,
        part by part, the most that the host has to hold in any."""
        self.shaped.use(config)
        ranks = config.training.num_workers
        found = [training_footprint(self.shaped, config.training, ranks, now) for now in self._situations(config)]
        last = self._last_of(config, curriculum(config)[-1])
        for domain in config.domains:
            for entry in domain.rounds:
                if entry.aligned:
                    training, now = settings_of(config, domain.name, entry), _aligning(config, entry, last)
                    found.append(training_footprint(self.shaped, training, ranks, now))
        return with_most_on_the_host(max(found, key=lambda footprint: footprint.peak), found)

    def _situations(self, config: CampaignConfig) -> Iterator[Situation]:
        """The campaign's last stack, which has the most in the host's memory and the most claims to keep out of; and
        the last of a domain with more stacks than others, which has the most beside it in an isolated context."""
        order = curriculum(config)
        most = max(order, key=lambda name: (most_stacks(config, name), order.index(name)))
        for name in dict.fromkeys((order[-1], most)):
            yield self._last_of(config, name)

    def _last_of(self, config: CampaignConfig, domain: str) -> Situation:
        """The last stack of a domain."""
        order = curriculum(config)
        place, own = order.index(domain), most_stacks(config, domain)
        before = sum(most_stacks(config, name) for name in order[:place]) + own - 1
        beside = before if config.training.context == "cumulative" else own - 1
        *_, basis = self._claims(config, place)
        return Situation(
            resident=beside,
            firing=beside,
            basis=basis,
            batch=_units(config.training.per_device_batch, config.data.max_length),
            scored=_filled(config.training.eval_batch_tokens, config.data.max_length),
            parked=before - beside,
            accumulated=self._accumulated(config, own),
        )

    def _accumulated(self, config: CampaignConfig, stacks: int) -> int:
        """Bytes that a closing adds up at all sites: second moments of the domain's rank activations in float64, and
        where directions of inputs are claimed a sketch of these and what it was drawn with."""
        rank = stacks * config.stack.experts * config.stack.rank
        found = 8 * rank**2 * len(self.widths)
        space = config.null_space
        if space.enabled and space.space in ("input", "both"):
            found += sum(2 * WORD * wide * min(space.max_rank + OVERSAMPLE, wide) for wide, _ in self.widths.values())
        return found

    def evaluator_of(self, config: CampaignConfig) -> Footprint:
        self.shaped.use(config)
        scored = _filled(config.sweep.batch_tokens, config.data.max_length)
        encoded = _filled(config.sweep.batch_tokens, config.router.max_prompt_length)
        answers = _answers(config)
        return evaluator_footprint(self.shaped, stacks=rounds(config), scored=scored, encoded=encoded, answers=answers)

    def whole(self, config: CampaignConfig) -> Whole:
        made = self.made(config)
        return Whole(
            self.worker_of(config),
            self.evaluator_of(config),
            volume_of(config, made, self.row_tokens),
            self.cost(config, made),
        )

    def made(self, config: CampaignConfig) -> Made:
        """What its bytes are of; it hangs on how many domains there are, and not on how many GPUs."""
        claimed = [basis_bytes(basis) for basis in self._claims(config, len(config.domains))]
        shaped, workers = self.shaped, config.training.num_workers
        return Made(
            self.stack_parameters, shaped.base_parameters, shaped.shared_out(workers), len(self.widths), claimed
        )

    def cost(self, config: CampaignConfig, made: Made) -> Cost:
        volume = volume_of(config, made, self.row_tokens)
        return cost_of(config, self.on, self.speed, volume, self.row_tokens)

    def _claims(self, config: CampaignConfig, domains: int) -> list[Basis]:
        return list(claims(self.widths, config.null_space, stack_rows(config), domains))

    @cached_property
    def speed(self) -> Speed:
        """Floating point operations of passes, without a frozen stack and with one more."""
        config = self.config
        self.shaped.use(config)
        count = config.training.per_device_batch
        batch = Batch(count, self.row_tokens, count * self.completion_tokens)
        trained, scored = [], []
        for stacks in (0, 1):
            self.shaped.set_stacks(stacks, stacks)
            trained.append(self.shaped.training_pass(batch, config.training.gradient_checkpointing, False).flops)
            self.shaped.set_stacks(stacks, stacks, learns=False)
            scored.append(self.shaped.scoring_pass(batch).flops)
        per = batch.tokens
        weights = sum(wide * high for wide, high in self.widths.values())
        return Speed(
            train=trained[0] / per,
            train_stack=(trained[1] - trained[0]) / per,
            score=scored[0] / per,
            score_stack=(scored[1] - scored[0]) / per,
            weights=weights,
            rest=self.shaped.base_parameters - weights,
        )

    def grown(self, config: CampaignConfig, domains: int) -> Grown:
        return _grown(domains, self.whole(with_domains(config, domains)))


def with_domains(config: CampaignConfig, count: int) -> CampaignConfig:
    """The config with as many domains as that, the new ones like the last."""
    last, now = config.domains[-1], len(config.domains)
    more = [last.model_copy(update={"name": f"domain{number}", "after": ()}) for number in range(now, count)]
    return config.model_copy(update={"domains": (*config.domains, *more)})


def _grown(domains: int, then: Whole) -> Grown:
    return Grown(
        domains=domains,
        worker_bytes=then.worker.peak,
        evaluator_bytes=then.evaluator.peak,
        store_bytes=then.volume.store,
        hours=then.cost.hours,
        usd=then.cost.usd,
    )


def _aligning(config: CampaignConfig, entry: RoundSection, last: Situation) -> Situation:
    """The last stack as that of an alignment round, whose micro-batch is padded rows: two of a pair, one an answer.
    What guards it fires other domains' stacks: none is parked."""
    data = config.data
    last = replace(last, resident=last.resident + last.parked, parked=0)
    if entry.objective == DPO:
        return replace(last, batch=_units(2 * entry.per_device_batch, data.max_length), objective=DPO)
    long = data.max_prompt_length + entry.answer_tokens
    batch = Batch(entry.per_device_batch, long, entry.per_device_batch * entry.answer_tokens)
    theirs = Answers(config.sweep.answer_batch, data.max_prompt_length, entry.answer_tokens)
    return replace(last, batch=batch, objective=GRPO, answers=theirs if entry.rollouts == "workers" else None)


def _answers(config: CampaignConfig) -> Answers | None:
    """What an evaluator generates at once: the sweep's answers, or those of rounds that learn from rewards."""
    lengths = [config.sweep.answer_tokens] if config.sweep.answer_rows else []
    for domain in config.domains:
        lengths += [one.answer_tokens for one in domain.rounds if one.objective == GRPO and one.rollouts != "workers"]
    return Answers(config.sweep.answer_batch, config.data.max_prompt_length, max(lengths)) if lengths else None


def _units(count: int, tokens: int) -> Batch:
    """Full units, every token but their first a label: the most that a micro-batch can be."""
    return Batch(count, tokens, count * (tokens - 1))


def _filled(batch_tokens: int, row_tokens: int) -> Batch:
    return _units(max(1, batch_tokens // row_tokens), row_tokens)
