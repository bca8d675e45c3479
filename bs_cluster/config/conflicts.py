"""Combinations of settings that cannot work, each told with its way out. Pure functions of a config.

A rule yields ``Conflict``s and never raises; ``problems`` is the list of their words.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bs_cluster.config.schema import CampaignConfig, RouterSection, SourceSection

EMBEDDED_BASES = ("gemma3-270m", "smollm2-135m")  # after ``embedded:``; bs_cluster.base.prepare builds them
_BASES_WITHOUT_CHAT_TEMPLATE = ("gemma3-270m",)  # the pretrained model, not the instruction-tuned one

# For each source kind: the field it cannot do without, and every field that means something to it.
_SOURCE_FIELDS: dict[str, tuple[str, set[str]]] = {
    "embedded": ("name", {"name"}),
    "jsonl": ("path", {"path", "format"}),
    "parquet": ("path", {"path", "format"}),
    "hub": ("name", {"name", "config", "split", "format"}),
    "reasoning_gym": ("tasks", {"tasks"}),
}


class Conflict(NamedTuple):
    """``keys`` are the dotted keys that clash, ``text`` the whole line for the user."""

    keys: tuple[str, ...]
    text: str


def problems(config: CampaignConfig) -> list[str]:
    """Every cross-field problem of a config whose single values are valid; empty when it can run."""
    return [conflict.text for conflict in conflicts(config)]


def conflicts(config: CampaignConfig) -> Iterator[Conflict]:
    yield from _base(config)
    yield from _lengths_and_sizes(config)
    yield from _training(config)
    yield from _order(config)
    yield from _sources(config)
    yield from _router_names(config)


def shown(value: Any) -> str:
    """A value as a user would write it, short enough for one line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean x?`` for the nearest known word, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _conflict(key: str, value: Any, words: str, *other_keys: str) -> Conflict:
    return Conflict((key, *other_keys), f"{key} = {shown(value)}: {words}")


def _base(config: CampaignConfig) -> Iterator[Conflict]:
    base = config.base
    kind, _, name = base.model.partition(":")
    if kind == "embedded":
        if name not in EMBEDDED_BASES:
            way_out = did_you_mean(name, EMBEDDED_BASES) or f"; the embedded bases are {', '.join(EMBEDDED_BASES)}"
            yield _conflict("base.model", base.model, f"no such embedded base{way_out}")
        if base.revision is not None:
            words = "an embedded base has no revisions; remove it"
            yield _conflict("base.revision", base.revision, words, "base.model")
        if config.data.template == "chat" and name in _BASES_WITHOUT_CHAT_TEMPLATE:
            words = f"{base.model} has no chat template; take alpaca or plain, or an instruction-tuned base"
            yield _conflict("data.template", "chat", words, "base.model")
    if base.attention == "flash_attention_2":
        if not config.training.use_gpu:
            words = "needs a GPU and training.use_gpu is false; take sdpa"
            yield _conflict("base.attention", base.attention, words, "training.use_gpu")
        if base.compute_dtype == "float32":
            words = "computes in 16 bits and base.compute_dtype is float32; take sdpa or bfloat16"
            yield _conflict("base.attention", base.attention, words, "base.compute_dtype")
    if base.cache_dequantized and base.quantization == "none":
        words = "nothing is dequantised when base.quantization is none; remove it"
        yield _conflict("base.cache_dequantized", True, words, "base.quantization")


def _lengths_and_sizes(config: CampaignConfig) -> Iterator[Conflict]:
    data, stack = config.data, config.stack
    if data.max_prompt_length >= data.max_length:
        words = f"leaves no room for a completion within data.max_length = {data.max_length}; lower it or raise that"
        yield _conflict("data.max_prompt_length", data.max_prompt_length, words, "data.max_length")
    if stack.top_k > stack.experts:
        words = f"only stack.experts = {stack.experts} exist to choose from; lower it or raise that"
        yield _conflict("stack.top_k", stack.top_k, words, "stack.experts")
    for module in _repeated(stack.target_modules):
        yield _conflict("stack.target_modules", list(stack.target_modules), f"{module} is listed twice; keep one")


def _training(config: CampaignConfig) -> Iterator[Conflict]:
    training = config.training
    lengths = {"training.steps": training.steps}  # a config says too little when only a domain's own steps are short
    lengths |= {f"domains.{domain.name}.steps": domain.steps for domain in config.domains if domain.steps is not None}
    for key, steps in lengths.items():
        everyone_overrides = key == "training.steps" and all(domain.steps is not None for domain in config.domains)
        if training.warmup_steps > steps and not everyone_overrides:
            words = f"the learning rate would still be warming up when {key} = {steps} ends; lower it or raise that"
            yield _conflict("training.warmup_steps", training.warmup_steps, words, key)
    if training.offload_optimizer and training.zero_stage == 0:
        words = "ZeRO stage 0 shards no optimizer state to offload; take training.zero_stage 1 or 2"
        yield _conflict("training.offload_optimizer", True, words, "training.zero_stage")


def _order(config: CampaignConfig) -> Iterator[Conflict]:
    names = [domain.name for domain in config.domains]
    name_keys = [f"domains.{name}.name" for name in names]
    for name in _repeated(names):
        words = f"{name} is listed twice; rename one, or merge their sources"
        yield Conflict(tuple(name_keys), f"domains: {words}")
    for domain in config.domains:
        key = f"domains.{domain.name}.after"
        for other in domain.after:
            if other == domain.name:
                yield _conflict(key, list(domain.after), f"{domain.name} cannot come after itself; remove it")
            elif other not in names:
                way_out = did_you_mean(other, names) or f"; the domains are {', '.join(names)}"
                yield _conflict(key, list(domain.after), f"no domain is called {other}{way_out}", *name_keys)
    for cycle in _cycles({domain.name: domain.after for domain in config.domains}):
        keys = tuple(f"domains.{name}.after" for name in cycle)
        loop = " -> ".join((*cycle, cycle[0]))
        yield Conflict(keys, f"{keys[0]}: the order is a cycle, {loop} (each after the next); remove one of these")


def _cycles(after: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Disjoint cycles of length two or more; the order is a cycle-free one exactly when there are none."""
    left = {name: {other for other in others if other in after and other != name} for name, others in after.items()}
    while left:
        free = [name for name, others in left.items() if not others & left.keys()]
        if free:
            left = {name: others for name, others in left.items() if name not in free}
            continue
        path = [next(iter(left))]  # nobody is free, so following `after` must come back to where it has been
        while (step := next(other for other in after[path[-1]] if other in left and other != path[-1])) not in path:
            path.append(step)
        cycle = tuple(path[path.index(step) :])
        yield cycle
        left = {name: others for name, others in left.items() if name not in cycle}


def _sources(config: CampaignConfig) -> Iterator[Conflict]:
    for domain in config.domains:
        for index, source in enumerate(domain.sources):
            key = f"domains.{domain.name}.sources.{index}"
            needed, meaningful = _SOURCE_FIELDS[source.kind]
            if not getattr(source, needed):
                words = f"a source of kind {source.kind} needs it; add it"
                yield _conflict(f"{key}.{needed}", getattr(source, needed), words, f"{key}.kind")
            for name in ("name", "path", "config", "split", "format", "tasks"):
                value = getattr(source, name)
                if name not in meaningful and value != SourceSection.model_fields[name].default:
                    words = f"means nothing to a source of kind {source.kind}; remove it, or change kind"
                    yield _conflict(f"{key}.{name}", value, words, f"{key}.kind")


def _router_names(config: CampaignConfig) -> Iterator[Conflict]:
    """Floors and boost must name domains. The schema's own defaults are let pass: they wait for their domain."""
    names = [domain.name for domain in config.domains]
    name_keys = [f"domains.{name}.name" for name in names]
    default = RouterSection()
    for name, floor in config.router.floors.items():
        if name not in names and default.floors.get(name) != floor:
            way_out = did_you_mean(name, names) or f"; the domains are {', '.join(names)}"
            yield _conflict(f"router.floors.{name}", floor, f"no domain is called {name}{way_out}", *name_keys)
    boosted = config.router.targets.boost_domain
    if boosted is not None and boosted not in names and boosted != default.targets.boost_domain:
        way_out = did_you_mean(boosted, names) or "; name one of the domains, or null"
        words = f"no domain is called {boosted}{way_out}"
        yield _conflict("router.targets.boost_domain", boosted, words, *name_keys)


def _repeated(names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [name for name in dict.fromkeys(listed) if listed.count(name) > 1]
