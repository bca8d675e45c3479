"""A finished campaign on a random base against language models of its architecture that were trained from scratch.

    python -m benchmarks.psn --campaigns stacks_store:psn --without stacks_store:psn_free --output benchmarks/psn.json

``--without`` names, in the same order, the same campaigns with ``null_space.enabled=false``. A row a domain, over its
own sweep rows, in nats per completion token: the base, the base with 1, 2, … of the domain's stacks, and what one could
train instead of them. ``dense`` has as many parameters as the domain's stacks, none of them given, and learned from the
very batches of the domain's rounds; ``pooled`` is of the mean size of those and learned from the rows of all domains,
shuffled, as many steps as theirs together. ``blocks`` are a domain's own on a part of the residual stream
(``partitions.py``), as many parameters again and from the same batches. Each one's rate is the best of ``RATES`` on
validation rows of the first domain. Losses are kept row by row in ``--output`` after each training: the same command
goes on where it was killed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from benchmarks.__main__ import machine_name
from benchmarks.evidence.campaign import Batch, Campaign
from benchmarks.evidence.instead import pooled_batches
from benchmarks.evidence.record import write_json
from benchmarks.partitions import Blocks, Partitioned, parameters_of, partitions, without_words
from benchmarks.psn_found import POOLED, Blocked, Dense, Found, lines, read, table
from bs_cluster.base.load import LoadedBase
from bs_cluster.config.schema import TrainingSection
from bs_cluster.data.batch import collate_packed, plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.inference.scoring import score_batch
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.quiet import quieten
from bs_cluster.training.optimizer import Rate, build_optimizer

RATES = (1e-3, 3e-3)
ROWS_AT_ONCE = 4  # attention over a sequence of rows costs the square of its length
MODES = ("base", "isolated", "routed", "ungated")


def figures(campaign: Campaign) -> Found:
    """All that needs no training."""
    stacked, config = StackedBase.load(campaign.config.base, "cpu"), campaign.config
    batch_tokens = config.sweep.batch_tokens
    rows, by_stacks, alone, parameters = _rows(campaign), {}, {}, {}
    for domain in campaign.domains:
        refs = [ref for ref in campaign.bundle.stacks if ref.stack.domain == domain]
        curve = [score(stacked, rows[domain], batch_tokens, ())]
        for ref in refs:  # the earlier domains' stacks lie beside these and do not fire
            stacked.attach(campaign.store.manifest(ref.manifest), campaign.store)
            curve.append(score(stacked, rows[domain], batch_tokens, stacked.of(domain)))
        by_stacks[domain], alone[domain] = tuple(curve), curve[-1]
        parameters[domain] = sum(_learned(campaign, ref.manifest) for ref in refs)
    again = {domain: score(stacked, rows[domain], batch_tokens, stacked.of(domain)) for domain in campaign.domains}
    changed = sum(a != b for domain in alone for a, b in zip(alone[domain], again[domain], strict=True))
    router = campaign.report["router"]
    kept = ("regret", "label_regret", "accuracy")
    return Found(
        campaign=config.campaign,
        seed=config.seed,
        base=config.base.model,
        machine=machine_name(),
        domains=tuple(campaign.domains),
        parameters=parameters,
        tokens={domain: tuple(row.completion_length for row in rows[domain]) for domain in rows},
        by_stacks=by_stacks,
        recorded=recorded(campaign),
        other_bits=changed,
        drift=campaign.report["isolated_drift_max"],
        router={key: router[key] for key in kept if router[key] is not None},
        confined=config.null_space.enabled,
    )


def recorded(campaign: Campaign) -> dict[str, dict[str, tuple[float, ...]]]:
    """What the campaign itself measured of each domain's sweep rows, in their order."""
    losses, found = campaign.losses, {}
    for domain in campaign.domains:
        places = [place for place, owner in enumerate(losses.owners) if owner == domain]
        found[domain] = {mode: tuple(float(losses.nll[mode][place] or 0.0) for place in places) for mode in MODES}
    return found


def train_dense(campaign: Campaign, found: Found, file: Path) -> Found:
    """What of it is not there yet, each kept when it is done."""
    rows, first = _rows(campaign), found.domains[0]
    config = StackedBase.load(campaign.config.base, "cpu").base.model.config
    for rate in RATES:
        if (key := f"{rate:g}") not in found.rates:
            _, model = _dense(campaign, config, found.parameters[first], campaign.batches[first], rate)
            held = campaign.rows[first].validation
            nll = sum(score(model, held, campaign.config.sweep.batch_tokens, ()))
            loss = nll / sum(row.completion_length for row in held)
            found = _kept(replace(found, rates={**found.rates, key: loss}), file)
            print(f"{found.campaign}: rate {key}: {loss:.4f} on validation rows of {first}", flush=True)
    best = float(min(found.rates, key=found.rates.__getitem__))
    for name in (*found.domains, POOLED):
        if name in found.dense:
            continue
        size = found.parameters.get(name, round(sum(found.parameters.values()) / len(found.domains)))
        batches = campaign.batches.get(name) or pooled_batches(list(campaign.batches.values()), found.seed)
        dense, model = _dense(campaign, config, size, batches, best)
        judged = found.domains if name == POOLED else (name,)
        nll = {domain: score(model, rows[domain], campaign.config.sweep.batch_tokens, ()) for domain in judged}
        found = _kept(replace(found, dense={**found.dense, name: replace(dense, nll=nll)}), file)
        print(f"{found.campaign}: {name}: {dense.parameters:,} parameters, {dense.seconds:.0f} s", flush=True)
    return found


def train_blocks(campaign: Campaign, found: Found, file: Path) -> Found:
    """Each domain's, then all of them together."""
    rows, batch_tokens = _rows(campaign), campaign.config.sweep.batch_tokens
    bare = StackedBase.load(campaign.config.base, "cpu").base
    like: Any = bare.model.config
    dealt = partitions(like.hidden_size, len(found.domains), found.seed)

    def trained(place: int, rate: float) -> Blocks:
        domain, columns_HQ = found.domains[place], dealt[place]
        config = sized(like, found.parameters[domain], lambda config: parameters_of(config, columns_HQ))
        torch.manual_seed(found.seed)
        blocks, batches = Blocks(without_words(config), columns_HQ), campaign.batches[domain]
        training = campaign.config.training.model_copy(update={"steps": len(batches), "learning_rate": rate})
        learn_all(Partitioned(bare.model, [blocks]), batches, training)
        return blocks.eval()

    def scored(blocks: Sequence[Blocks], of: Sequence[EncodedRow]) -> tuple[float, ...]:
        model: Any = Partitioned(bare.model, blocks)
        whole = StackedBase(LoadedBase(model, bare.tokenizer, bare.ref), cache_dequantized=False)
        return score(whole, of, batch_tokens, ())

    for rate in RATES:
        if (key := f"{rate:g}") not in found.block_rates:
            held = campaign.rows[found.domains[0]].validation
            loss = sum(scored([trained(0, rate)], held)) / sum(row.completion_length for row in held)
            found = _kept(replace(found, block_rates={**found.block_rates, key: loss}), file)
            print(f"{found.campaign}: blocks, rate {key}: {loss:.4f} on validation rows", flush=True)
    if found.blocks is not None:
        return found
    began, best = time.monotonic(), float(min(found.block_rates, key=found.block_rates.__getitem__))
    every = {domain: trained(place, best) for place, domain in enumerate(found.domains)}
    first = every[found.domains[0]]
    blocked = Blocked(
        parameters=sum(parameter.numel() for parameter in first.parameters()),
        hidden=first.reads.out_features,
        columns=first.writes.out_features,
        rate=best,
        seconds=round(time.monotonic() - began, 1),
        own={domain: scored([blocks], rows[domain]) for domain, blocks in every.items()},
        together={domain: scored(list(every.values()), rows[domain]) for domain in every},
    )
    print(f"{found.campaign}: blocks of {blocked.parameters:,} parameters, {blocked.seconds:.0f} s", flush=True)
    return _kept(replace(found, blocks=blocked), file)


def learn_all(model: nn.Module, batches: Sequence[Batch], training: TrainingSection) -> None:
    """A step for each batch, as a round takes it: its optimizer, its rate by step, its clipping, the mean over the
    batch's completion tokens. The loss that stacks learn by has no gradient for the head, which here learns too."""
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = build_optimizer(learned, training)
    rate = Rate(optimizer, training)
    for step, rows in enumerate(batches, start=1):
        rate.set(step, None)
        tokens = sum(row.completion_length for row in rows)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            batch = collate_packed(rows[first : first + ROWS_AT_ONCE])
            logits_1TV = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            nll = functional.cross_entropy(logits_1TV[0, :-1], batch["labels"][0, 1:], reduction="sum")
            (nll / tokens).backward()
        nn.utils.clip_grad_norm_(learned.values(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def sized(like: PreTrainedConfig, parameters: int, count: Callable[[PreTrainedConfig], int]) -> PreTrainedConfig:
    """This architecture with other widths in the same proportions, so many parameters as near as heads allow."""
    step, found = 2 * like.num_attention_heads, []
    for hidden in itertools.count(step, step):
        config = copy.deepcopy(like)
        config.hidden_size, config.head_dim = hidden, hidden // like.num_attention_heads
        config.intermediate_size = round(hidden * like.intermediate_size / like.hidden_size)
        config.quantization_config = None
        found.append((abs(count(config) - parameters), hidden, config))
        if count(config) >= parameters:
            return min(found, key=lambda one: one[:2])[2]
    raise AssertionError("unreachable")


def count(config: PreTrainedConfig) -> int:
    """Parameters of such a model; what is tied counts once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def score(
    stacked: StackedBase, rows: Sequence[EncodedRow], batch_tokens: int, fire: Sequence[str]
) -> tuple[float, ...]:
    """Summed loss of each row under these stacks."""
    stacked.fire(fire)
    found: dict[int, float] = {}
    for batch in plan_batches([len(row.input_ids) for row in rows], batch_tokens):
        losses = score_batch(stacked, [rows[place] for place in batch])
        found |= {place: loss.nll for place, loss in zip(batch, losses, strict=True)}
    return tuple(found[place] for place in range(len(rows)))


def _rows(campaign: Campaign) -> dict[str, list[EncodedRow]]:
    owned = list(zip(campaign.losses.owners, campaign.sweep, strict=True))
    return {domain: [row for owner, row in owned if owner == domain] for domain in campaign.domains}


def _learned(campaign: Campaign, manifest: str) -> int:
    """Parameters of one stack. Noise weights count where there was noise to scale."""
    tensors = campaign.store.load_stack(campaign.store.manifest(manifest)).tensors
    noise = campaign.config.training.noise
    return sum(tensor.numel() for key, tensor in tensors.items() if noise or "stack_noise" not in key)


def _dense(
    campaign: Campaign, like: PreTrainedConfig, parameters: int, batches: Sequence[Batch], rate: float
) -> tuple[Dense, StackedBase]:
    """A model of so many parameters, trained from scratch in fp32, ready to be scored."""
    began, config = time.monotonic(), sized(like, parameters, count)
    torch.manual_seed(campaign.config.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    training = campaign.config.training.model_copy(update={"steps": len(batches), "learning_rate": rate})
    learn_all(model, batches, training)
    bare = StackedBase.load(campaign.config.base, "cpu").base
    stacked = StackedBase(LoadedBase(model, bare.tokenizer, bare.ref), cache_dequantized=False)
    size = sum(parameter.numel() for parameter in model.parameters())
    return Dense(size, config.hidden_size, rate, round(time.monotonic() - began, 1), {}), stacked


def _known(campaign: Campaign, file: Path) -> Found:
    """What the file has of it already, or all that needs no training."""
    known = {one.campaign: one for one in read(file)}
    return known.get(campaign.config.campaign) or _kept(figures(campaign), file)


def _kept(found: Found, file: Path) -> Found:
    kept = {one.campaign: one for one in read(file)} | {found.campaign: found}
    write_json(file, {name: one.to_dict() for name, one in kept.items()})
    return found


def main() -> None:
    quieten()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.psn", description="Stacks on a random base against models from scratch."
    )
    parser.add_argument("--campaigns", nargs="+", required=True, help="store:name of finished campaigns")
    parser.add_argument("--without", nargs="*", default=[], help="their like with null_space.enabled=false")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of what was found")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; as found by torch if 0")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for named, other in itertools.zip_longest(arguments.campaigns, arguments.without):
        campaign = Campaign.named(named)
        found = _known(campaign, arguments.output)
        found = train_dense(campaign, found, arguments.output)
        found = train_blocks(campaign, found, arguments.output)
        free = _known(Campaign.named(other), arguments.output) if other else None
        print(table(found).markdown(), *lines(found, free), sep="\n", flush=True)


if __name__ == "__main__":
    main()
