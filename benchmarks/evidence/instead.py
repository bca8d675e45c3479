"""Stage ``instead``: a finished campaign against what a user would do without it, on the rows that it was judged on.

Rivals are PEFT LoRAs on the same frozen base. They see the rows that the campaign's rounds saw, in the same order and
batches, under the same optimizer, schedule and clipping, as many steps (rounds that were not kept count too), with no
fewer parameters a domain. What had to be chosen for them was chosen on validation rows of one campaign
(``Choices``). A campaign's file is written anew after each of them, so that what was killed goes on.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import peft
import torch
import transformers

from benchmarks.__main__ import machine_name
from benchmarks.evidence.campaign import Batch, Campaign
from benchmarks.evidence.record import Instead, Tried, write_json
from benchmarks.evidence.rivals import Rivals, arrow
from bs_cluster.data.encode import EncodedRow
from bs_cluster.records import Record
from bs_cluster.training.round import round_seed

RATES = (2e-4, 5e-4, 1e-3, 2e-3)
RATE_DOMAINS = 2  # those with the shortest rows: each of the others costs as much as both
WEIGHTS, DENSITIES = (0.2, 0.5, 1.0), (0.2,)
CHOSEN_MERGES = {"ties": "ties", "dare": "dare_ties"}
UNROUTED = ("base", "isolated", "ungated")  # what a campaign recorded of its stacks, however they are routed
Say = Callable[[str], None]


@dataclass(frozen=True)
class Choices(Record):
    """What was tried on validation rows of ``campaign``, and its losses there. ``rates`` are learning rates, each on
    the rows of ``rate_domains`` under their own LoRAs; ``merges[name]`` weights and densities, as ``weight/density``,
    each on the rows of all domains."""

    campaign: str
    rate_domains: tuple[str, ...]
    rates: dict[str, float]
    merges: dict[str, dict[str, float]]

    @property
    def rate(self) -> float:
        return float(min(self.rates, key=self.rates.__getitem__))

    def merge(self, name: str) -> tuple[float, float]:
        """The best weight and density."""
        tried = self.merges[name]
        weight, density = min(tried, key=tried.__getitem__).split("/")
        return float(weight), float(density)


def choose(campaign: Campaign, file: Path, work: Path, say: Say) -> Choices:
    """What the file does not hold yet is tried now, and kept there one by one."""
    short = tuple(sorted(campaign.domains, key=lambda domain: _length(campaign.batches[domain]))[:RATE_DOMAINS])
    empty = Choices(campaign.config.campaign, short, {}, {name: {} for name in CHOSEN_MERGES})
    choices = Choices.from_dict(json.loads(file.read_text())) if file.exists() else empty
    for rate in RATES:
        if (key := f"{rate:g}") not in choices.rates:
            loss = _of_rate(campaign, work, rate, choices.rate_domains)
            say(f"rate {key}: {loss:.4f} on validation rows of {', '.join(choices.rate_domains)}")
            choices = replace(choices, rates={**choices.rates, key: loss})
            write_json(file, choices.to_dict())
    rivals = None
    for name, weight, density in itertools.product(CHOSEN_MERGES, WEIGHTS, DENSITIES):
        if (key := f"{weight:g}/{density:g}") not in choices.merges[name]:
            rivals = rivals or _rivals(campaign, work, choices.rate)
            loss = _of_merge(campaign, rivals, choices.rate, CHOSEN_MERGES[name], weight, density)
            say(f"{name}, weight {weight:g}, density {density:g}: {loss:.4f}")
            choices = replace(choices, merges={**choices.merges, name: {**choices.merges[name], key: loss}})
            write_json(file, choices.to_dict())
    return choices


def _of_rate(campaign: Campaign, work: Path, rate: float, domains: Sequence[str]) -> float:
    """Nats per token of these domains' validation rows, each under its own LoRA learned at this rate."""
    rivals = _rivals(campaign, work, rate)
    nll = 0.0
    for domain in domains:
        _train_lora(campaign, rivals, rate, domain)
        nll += sum(rivals.score(campaign.rows[domain].validation))
    return nll / sum(row.completion_length for domain in domains for row in campaign.rows[domain].validation)


def _of_merge(campaign: Campaign, rivals: Rivals, rate: float, kind: str, weight: float, density: float) -> float:
    """Nats per token of all domains' validation rows under a merge of their LoRAs."""
    for domain in campaign.domains:
        _train_lora(campaign, rivals, rate, domain)
    held = [row for rows in campaign.rows.values() for row in rows.validation]
    rivals.merge("tried", _names(campaign), kind, weight, density, campaign.config.seed)
    return sum(rivals.score(held)) / sum(row.completion_length for row in held)


def measure(
    campaign: Campaign, file: Path, work: Path, choices: Choices, only: Sequence[str], until: float, say: Say
) -> None:
    """Everything that the campaign's file does not hold yet, or what of it is named in ``only``; nothing is begun once
    the clock (``time.monotonic``) is at ``until``."""
    rivals = _rivals(campaign, work, choices.rate)
    ours = {mode: tuple(nll) for mode, nll in campaign.losses.nll.items()}
    if not file.exists() or not _is_of(Instead.load(file), campaign, ours):
        say("labels are told by the classifier")
        _begin(campaign, rivals, choices).save(file)
    elif (found := Instead.load(file)).ours != ours:
        say("its stacks are routed anew")
        replace(found, ours=ours).save(file)
    for name, attempt in _attempts(campaign, rivals, choices).items():
        found = Instead.load(file)
        wanted = name in only if only else True
        if wanted and name not in found.tried and time.monotonic() < until:
            tried = attempt()
            found = Instead.load(file)  # another process may have tried something else meanwhile
            found.with_tried(name, tried).save(file)
            mean = sum(tried.nll) / sum(found.tokens)
            say(f"{name}: {mean:.4f} on all rows, {tried.parameters:,} parameters, {tried.seconds:.0f} s")


def _begin(campaign: Campaign, rivals: Rivals, choices: Choices) -> Instead:
    """With the bare base alone tried, before any LoRA is on it."""
    losses, records = campaign.losses, campaign.records
    began = time.monotonic()
    base = Tried(rivals.score(campaign.sweep), 0, time.monotonic() - began, "scored here")
    return Instead(
        campaign=campaign.config.campaign,
        data=campaign.data,
        seed=campaign.config.seed,
        base=campaign.config.base.model,
        domains=campaign.domains,
        machine=machine_name(),
        versions={"torch": torch.__version__, "peft": peft.__version__, "transformers": transformers.__version__},
        row_ids=losses.row_ids,
        owners=losses.owners,
        tokens=losses.tokens,
        ours={mode: tuple(nll) for mode, nll in losses.nll.items()},
        our_parameters=campaign.trained_parameters(),
        our_seconds=sum(done.seconds for record in records for done in record.rounds),
        drift=campaign.report["isolated_drift_max"],
        matrix={record.domain: record.matrix for record in records},
        steps={domain: len(batches) for domain, batches in campaign.batches.items()},
        batch=campaign.config.training.global_batch,
        rank=campaign.rank,
        rate=choices.rate,
        classified=campaign.classify(rivals.bare),
        tried={"base": base},
    )


def _is_of(found: Instead, campaign: Campaign, ours: Mapping[str, tuple[float | None, ...]]) -> bool:
    """Whether it is of this very campaign's stacks, and not of one of the same name that was run anew: no rival hangs
    on how stacks are routed."""
    return found.row_ids == campaign.losses.row_ids and all(found.ours[mode] == ours[mode] for mode in UNROUTED)


def _attempts(campaign: Campaign, rivals: Rivals, choices: Choices) -> dict[str, Callable[[], Tried]]:
    """In the order in which they are made: later ones take up what earlier ones trained."""
    names, rate, seed = _names(campaign), choices.rate, campaign.config.seed
    attempts: dict[str, Callable[[], Tried]] = {}

    def attempt(name: str, make: Callable[[], Tried]) -> None:
        attempts[name] = make

    def scored(parameters: int, seconds: float, note: str) -> Tried:
        return Tried(rivals.score(campaign.sweep), parameters, seconds, note)

    def lora(domain: str) -> Tried:
        seconds, parameters = _train_lora(campaign, rivals, rate, domain)
        return scored(parameters, seconds, f"{len(campaign.batches[domain])} steps")

    def all_trained() -> None:
        for domain in campaign.domains:
            _train_lora(campaign, rivals, rate, domain)

    def merge(name: str, kind: str, weight: float, density: float | None) -> Tried:
        all_trained()
        began = time.monotonic()
        parameters = rivals.merge(name, names, kind, weight, density, seed)
        seconds = time.monotonic() - began
        tried = scored(parameters, seconds, f"weight {weight:g}" + (f", density {density:g}" if density else ""))
        rivals.drop(name)
        return tried

    def pooled() -> Tried:
        batches = pooled_batches(list(campaign.batches.values()), seed)
        seconds, parameters = rivals.train("pooled", batches, _training(campaign, rate), round_seed(seed, "pooled"))
        return scored(parameters, seconds, f"{len(batches)} steps")

    def sequential(domain: str, before: str | None) -> Tried:
        name, start = f"sequential:{domain}", f"sequential:{before}" if before else None
        seconds, parameters = rivals.train(
            name, campaign.batches[domain], _training(campaign, rate), round_seed(seed, "sequential"), start
        )
        if start is not None:
            rivals.drop(start)  # not the newest: PEFT adds nothing to a model without any
        return scored(parameters, seconds, f"{len(campaign.batches[domain])} steps")

    def routed() -> Tried:
        all_trained()
        began = time.monotonic()
        folders = [rivals.folder / name for name in names]
        settings = campaign.config
        nll = arrow(settings.base, folders, settings.sweep.batch_tokens, campaign.sweep)
        return Tried(nll, 0, time.monotonic() - began, "top_k 3, temperature 1, scored in that time")

    for domain in campaign.domains:
        attempt(f"lora:{domain}", lambda domain=domain: lora(domain))
    attempt("sum", lambda: merge("sum", "cat", 1.0, None))
    attempt("mean", lambda: merge("mean", "cat", 1 / len(names), None))
    for name, kind in CHOSEN_MERGES.items():
        args = (name, kind, *choices.merge(name))
        attempt(name, lambda args=args: merge(*args))
    attempt("arrow", routed)
    attempt("pooled", pooled)
    for before, domain in zip((None, *campaign.domains), campaign.domains, strict=False):
        attempt(f"sequential:{domain}", lambda domain=domain, before=before: sequential(domain, before))
    return attempts


def pooled_batches(of_domains: Sequence[Sequence[Batch]], seed: int) -> list[Batch]:
    """The rows of all batches of all domains, each as often as there, shuffled, in as many batches."""
    batches = [batch for batches in of_domains for batch in batches]
    rows: list[EncodedRow] = [row for batch in batches for row in batch]
    random.Random(seed).shuffle(rows)
    return [rows[i * len(rows) // len(batches) : (i + 1) * len(rows) // len(batches)] for i in range(len(batches))]


def _length(batches: Sequence[Batch]) -> int:
    return sum(len(row.input_ids) for batch in batches for row in batch)


def _names(campaign: Campaign) -> list[str]:
    return [f"lora:{domain}" for domain in campaign.domains]


def _rivals(campaign: Campaign, work: Path, rate: float) -> Rivals:
    folder = work / campaign.bundle.digest()[:12] / f"{rate:g}"
    folder.mkdir(parents=True, exist_ok=True)
    return Rivals(campaign.config.base, folder, campaign.rank, campaign.config.sweep.batch_tokens)


def _train_lora(campaign: Campaign, rivals: Rivals, rate: float, domain: str) -> tuple[float, int]:
    name = f"lora:{domain}"
    seed = round_seed(campaign.config.seed, name)
    return rivals.train(name, campaign.batches[domain], _training(campaign, rate), seed)


def _training(campaign: Campaign, rate: float):
    return campaign.config.training.model_copy(update={"learning_rate": rate, "b_lr_ratio": 1.0})
