"""Combinations of settings that cannot work, each told with its way out. Pure functions of a config.

A rule yields ``Conflict``s and never raises; ``problems`` is the list of their words.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bs_cluster.config import plugins
from bs_cluster.config.rounds import DPO, ONLY, SFT, RoundSection
from bs_cluster.config.schema import PROJECTIONS, VALIDATION_ROWS_NEEDED, CampaignConfig, RandomSection, RouterSection
from bs_cluster.config.sources import (
    BUILT_IN_VERIFIERS,
    EMBEDDED_PREFERENCES,
    EMBEDDED_ROWS,
    EmbeddedSource,
    SourceSection,
    format_names,
)
from bs_cluster.errors import ConfigError

EMBEDDED_BASES = ("gemma3-270m", "smollm2-135m")  # after ``embedded:``; bs_cluster.base.prepare builds them
BUILT_IN_OPTIMIZERS = ("adamw",)  # bs_cluster.training.optimizer builds them
RANDOM_ARCHITECTURES = ("gemma3", "llama")  # after ``random:``; bs_cluster.base.random_weights makes them
NF4_BLOCK = 64  # bitsandbytes packs weights by as many
_BASES_WITHOUT_CHAT_TEMPLATE = ("gemma3-270m",)  # the pretrained model, not the instruction-tuned one


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
    yield from _rounds(config)
    yield from _sources(config)
    yield from _router_names(config)
    yield from _sweep_rows(config)
    yield from _registry(config)


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
    elif kind == "random":
        yield from _random(config, name)
    elif name:
        way_out = did_you_mean(kind, ["embedded", "random"]) or (
            "; name an embedded or a random base, a folder or a model of the Hub"
        )
        yield _conflict("base.model", base.model, f"no kind of base is called {kind}{way_out}")
    if kind != "random" and base.random != RandomSection():
        words = f"base.model = {base.model} is not a random base; remove base.random, or take random:llama"
        yield _conflict("base.random", base.random.model_dump(exclude_defaults=True), words, "base.model")
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


def _random(config: CampaignConfig, architecture: str) -> Iterator[Conflict]:
    base, sizes = config.base, config.base.random
    if architecture not in RANDOM_ARCHITECTURES:
        way_out = did_you_mean(architecture, RANDOM_ARCHITECTURES)
        words = f"no such architecture{way_out}; there are {', '.join(RANDOM_ARCHITECTURES)}"
        yield _conflict("base.model", base.model, words)
    if base.revision is not None:
        yield _conflict("base.revision", base.revision, "a random base has no revisions; remove it", "base.model")
    if config.data.template == "chat":
        words = "a random base has no chat template; take alpaca or plain"
        yield _conflict("data.template", "chat", words, "base.model")
    kv_heads, head = sizes.kv_heads or sizes.heads, sizes.hidden // sizes.heads
    if sizes.hidden % (2 * sizes.heads):
        words = f"not base.random.heads = {sizes.heads} heads of an even width; take a multiple of {2 * sizes.heads}"
        yield _conflict("base.random.hidden", sizes.hidden, words, "base.random.heads")
    elif base.quantization == "nf4":
        widths = {"hidden": sizes.hidden, "intermediate": sizes.intermediate}
        widths |= {"kv_heads": kv_heads * head} if sizes.kv_heads else {}
        for key in [key for key, width in widths.items() if width % NF4_BLOCK]:
            words = f"a width of {widths[key]}, and NF4 packs {NF4_BLOCK} at a time; take a multiple, or none"
            yield _conflict(f"base.random.{key}", getattr(sizes, key), words, "base.quantization")
    if sizes.heads % kv_heads:
        words = f"base.random.heads = {sizes.heads} cannot share them evenly; take a divisor, or null"
        yield _conflict("base.random.kv_heads", kv_heads, words, "base.random.heads")
    if config.data.max_length > sizes.context:
        words = f"data.max_length = {config.data.max_length} is longer; lower that, or raise it"
        yield _conflict("base.random.context", sizes.context, words, "data.max_length")


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
    for module in dict.fromkeys(stack.target_modules):
        if module not in PROJECTIONS:
            way_out = did_you_mean(module, PROJECTIONS) or f"; the projections are {', '.join(PROJECTIONS)}"
            words = f"no projection is called {module}{way_out}"
            yield _conflict("stack.target_modules", list(stack.target_modules), words)


def _training(config: CampaignConfig) -> Iterator[Conflict]:
    training = config.training
    lengths = {"training.steps": training.steps}  # a config says too little when only a domain's own steps are short
    lengths |= {f"domains.{domain.name}.steps": domain.steps for domain in config.domains if domain.steps is not None}
    for key, steps in lengths.items():
        everyone_overrides = key == "training.steps" and all(domain.steps is not None for domain in config.domains)
        if training.warmup_steps > steps and not everyone_overrides:
            words = f"the learning rate would still be warming up when {key} = {steps} ends; lower it or raise that"
            yield _conflict("training.warmup_steps", training.warmup_steps, words, key)
    per_pass = training.num_workers * training.per_device_batch
    if training.global_batch % per_pass:
        words = (
            f"training.num_workers x per_device_batch = {training.num_workers} x {training.per_device_batch} rows are "
            f"made at once, and no whole number of times; take a multiple of {per_pass}, or change those"
        )
        keys = ("training.num_workers", "training.per_device_batch")
        yield _conflict("training.global_batch", training.global_batch, words, *keys)
    if training.min_workers is not None and training.min_workers > training.num_workers:
        words = f"no group has more than training.num_workers = {training.num_workers} workers; lower it or raise that"
        yield _conflict("training.min_workers", training.min_workers, words, "training.num_workers")
    optimizers = (*BUILT_IN_OPTIMIZERS, *plugins.found(plugins.OPTIMIZERS))
    if training.optimizer not in optimizers:
        way_out = f"{did_you_mean(training.optimizer, optimizers)}; there are {', '.join(optimizers)}"
        yield _conflict("training.optimizer", training.optimizer, f"no such optimizer{way_out}")
    if config.data.validation_rows < VALIDATION_ROWS_NEEDED:
        words = (
            "two rows at least choose a stack's snapshot and two decide about its commit; "
            f"{VALIDATION_ROWS_NEEDED} or more"
        )
        yield _conflict("data.validation_rows", config.data.validation_rows, words)
    if training.offload_optimizer and training.zero_stage == 0:
        words = "ZeRO stage 0 shards no optimizer state to offload; take training.zero_stage 1, 2 or 3"
        yield _conflict("training.offload_optimizer", True, words, "training.zero_stage")
    if training.zero_stage == 3 and config.base.cache_dequantized:
        words = "ZeRO stage 3 shards the base, which base.cache_dequantized keeps whole; set that to false, or take 2"
        yield _conflict("training.zero_stage", 3, words, "base.cache_dequantized")


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


def _rounds(config: CampaignConfig) -> Iterator[Conflict]:
    """What a domain's list of rounds may say: what each objective needs, and nothing that means nothing to it."""
    for domain in config.domains:
        key = f"domains.{domain.name}.rounds"
        objectives = [entry.objective for entry in domain.rounds]
        if SFT in objectives[1:]:
            words = "sft stands once, at the front: its boosting rounds (max_rounds) end before alignment begins"
            yield _conflict(key, objectives, words)
        for place, entry in enumerate(domain.rounds):
            yield from _round(f"{key}.{place}", entry)


def _round(key: str, entry: RoundSection) -> Iterator[Conflict]:
    fields = RoundSection.model_fields
    changed = {name for name, field in fields.items() if name != "objective" and getattr(entry, name) != field.default}
    if not entry.aligned:
        for name in sorted(changed):
            words = "an sft entry has no settings of its own; set the domain's own beside its rounds"
            yield _conflict(f"{key}.{name}", getattr(entry, name), words)
        return
    if entry.source is None:
        needs = "pairs of answers" if entry.objective == DPO else "prompts whose answers can be checked"
        yield Conflict((f"{key}.source",), f"{key}.source: missing; {entry.objective} needs {needs}: give it a source")
    for name in sorted(changed & ONLY.keys()):
        if entry.objective not in ONLY[name]:
            words = f"means something to {' and '.join(ONLY[name])} only; remove it"
            yield _conflict(f"{key}.{name}", getattr(entry, name), words)
    if entry.units_of_a_step % entry.per_device_batch:
        made = "pairs" if entry.objective == DPO else "prompts x group answers"
        words = f"{entry.units_of_a_step} {made} of a step are no whole number of these; take a divisor"
        yield _conflict(f"{key}.per_device_batch", entry.per_device_batch, words, f"{key}.global_batch")


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
    preferring = {
        f"domains.{domain.name}.rounds.{place}"
        for domain in config.domains
        for place, entry in enumerate(domain.rounds)
        if entry.objective == DPO
    }
    for key, source in config.sources().items():
        pairs = key.removesuffix(".source") in preferring
        names = EMBEDDED_PREFERENCES if pairs else EMBEDDED_ROWS
        if isinstance(source, EmbeddedSource) and source.name not in names:
            way_out = did_you_mean(source.name, names) or f"; there are {', '.join(names)}"
            yield _conflict(f"{key}.name", source.name, f"no such embedded {'pairs' if pairs else 'rows'}{way_out}")
        if source.row_format not in format_names():
            way_out = did_you_mean(source.row_format, format_names()) or f"; there are {', '.join(format_names())}"
            yield _conflict(f"{key}.format", source.row_format, f"no such format{way_out}")
        yield from _verifier(key, source)


def _verifier(key: str, source: SourceSection) -> Iterator[Conflict]:
    """A function is loaded right away: to miss it when the stacks are trained would be late."""
    if source.verify is not None and ":" in source.verify:
        try:
            plugins.function_at(source.verify)
        except ConfigError as error:
            yield _conflict(f"{key}.verify", source.verify, error.problems[0])
    elif source.verify is not None and source.verify not in BUILT_IN_VERIFIERS:
        way_out = did_you_mean(source.verify, BUILT_IN_VERIFIERS) or f"; there are {', '.join(BUILT_IN_VERIFIERS)}"
        yield _conflict(f"{key}.verify", source.verify, f"no such verifier{way_out} and package.module:function")
    if (source.verify == "tests") != (source.tests is not None):
        words = "verify: tests and the column that holds them go together; set both or neither"
        yield _conflict(f"{key}.tests", source.tests, words, f"{key}.verify")


def _sweep_rows(config: CampaignConfig) -> Iterator[Conflict]:
    for kind in ("mixed", "foreign"):
        for name in _repeated(rows.name for rows in getattr(config.sweep, kind)):
            yield _conflict(f"sweep.{kind}", name, f"{name} is listed twice; rename one, or merge their sources")


def _router_names(config: CampaignConfig) -> Iterator[Conflict]:
    """Boost must name a domain. The schema's own default is let pass: it waits for its domain."""
    names = [domain.name for domain in config.domains]
    name_keys = [f"domains.{name}.name" for name in names]
    boosted = config.router.targets.boost_domain
    if boosted is not None and boosted not in names and boosted != RouterSection().targets.boost_domain:
        way_out = did_you_mean(boosted, names) or "; name one of the domains, or null"
        words = f"no domain is called {boosted}{way_out}"
        yield _conflict("router.targets.boost_domain", boosted, words, *name_keys)


def _registry(config: CampaignConfig) -> Iterator[Conflict]:
    uri = config.registry.tracking_uri or ""
    path = uri.removeprefix("sqlite:///")
    if uri.startswith("sqlite:") and not path.startswith("/"):
        words = (
            "a relative path is another file in every folder; write it from the root, as in sqlite:////data/mlflow.db"
        )
        yield _conflict("registry.tracking_uri", uri, words)


def _repeated(names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [name for name in dict.fromkeys(listed) if listed.count(name) > 1]
