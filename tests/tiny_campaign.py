"""A whole campaign in miniature: a tiny random Gemma 3 in NF4, domains of a hundred rows each, steps by the handful.

folder = write_inputs(tmp_path)                               # base/ and a jsonl file per domain
config = campaign(folder, tmp_path / "store", ("aa", "bb"), training={"steps": 4})
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tiny import save_tiny_base

from bs_cluster import __version__
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.inference.stacked import StackedBase, stack_config
from bs_cluster.records import SCHEMA_VERSION, StackId, StackManifest
from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.store import Store, stage_entries

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
TASKS: dict[str, Callable[[str], str]] = {
    "aa": lambda word: word.upper(),
    "bb": lambda word: word[::-1],
    "cc": lambda word: word + word,
}
SETTINGS: dict[str, Any] = {
    "campaign": "tiny",
    "base": {"quantization": "nf4", "cache_dequantized": True},
    "data": {
        "template": "plain",
        "max_length": 96,
        "max_prompt_length": 60,
        "train_rows": 80,
        "validation_rows": 8,
        "sweep_rows": 10,
        "decontaminate": False,
    },
    "stack": {"rank": 4},
    "training": {
        "num_workers": 2,
        "use_gpu": False,
        "cpus_per_worker": 1,
        "threads_per_worker": 1,
        "steps": 6,
        "max_rounds": 2,
        "global_batch": 8,
        "per_device_batch": 4,
        "learning_rate": 5e-3,
        "warmup_steps": 1,
        "eval_every": 3,
        "eval_batch_tokens": 256,
        "context": "cumulative",  # the harder of the two: a domain then depends on those before it
    },
    "null_space": {"space": "output", "max_rank": 4},
    "sweep": {
        "evaluators": 2,
        "cpus_per_evaluator": 1,
        "gpus_per_evaluator": 0,
        "threads_per_evaluator": 1,
        "answer_rows": 3,
        "answer_tokens": 16,
    },
}


def write_inputs(folder: Path) -> Path:
    """The base and a jsonl file per task, the same bytes every time."""
    save_tiny_base(folder / "base", "gemma3")
    draw = random.Random(0)
    for name, task in TASKS.items():
        words = [f"{draw.choice(WORDS)}{draw.randint(0, 9999)}" for _ in range(120)]
        rows = [json.dumps({"prompt": f"{name} {word}", "completion": task(word)}) for word in words]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def settings(inputs: Path, store: Path, domains: Sequence[str], /, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a config file would hold. ``changes`` are sections, merged into ``SETTINGS`` key by key."""
    files = {name: str(inputs / f"{name}.jsonl") for name in domains}
    sources = {name: [{"kind": "jsonl", "path": path, "verify": "exact"}] for name, path in files.items()}
    given: dict[str, Any] = {
        "base": {"model": str(inputs / "base")},
        "domains": [{"name": name, "sources": sources[name]} for name in domains],
        "store": {"uri": str(store)},
    }
    return _merged(_merged(copy.deepcopy(SETTINGS), given), changes)


def campaign(inputs: Path, store: Path, domains: Sequence[str], /, **changes: Mapping[str, Any]) -> CampaignConfig:
    return CampaignConfig.model_validate(settings(inputs, store, domains, **changes))


def commit_random_stacks(config: CampaignConfig, store: Store, staging: Path, rounds: int = 1) -> StackedBase:
    """So many stacks per domain that has none yet, as if trained, their B drawn at random; the base with all on it."""
    stacked = StackedBase.load(config.base, "cpu")
    for _, manifest in store.stacks():
        stacked.attach(manifest, store)
    for position, domain in enumerate(domain.name for domain in config.domains):
        for stack in (StackId(domain, number) for number in range(1, rounds + 1)):
            if stack.name not in stacked.names:
                _commit_random(config, store, staging, stacked, stack, position)
    stacked.fire(stacked.names)
    return stacked


def _commit_random(
    config: CampaignConfig, store: Store, staging: Path, stacked: StackedBase, stack: StackId, position: int
) -> None:
    settings, seed = stack_config(config.stack, stack, position), position + 100 * (stack.round - 1)
    name = stacked.begin(settings, seed=seed)
    stacked.fire([], train=name)
    draw = torch.Generator().manual_seed(seed)
    for site in stacked.tuner.sites:
        b_ERO = site.stack_B[name].data
        b_ERO.copy_(0.1 * torch.randn(b_ERO.shape, generator=draw))
    write_adapter(staging / name, settings, stacked.tuner.freeze(name))
    (staging / name / "history.jsonl").write_text('{"step": 0, "loss": 3.0}\n')
    manifest = StackManifest(
        schema_version=SCHEMA_VERSION,
        campaign=config.campaign,
        stack=stack,
        position=position,
        parents=tuple(ref for ref, _ in store.stacks()),
        context=(),
        base=stacked.base.ref,
        config_digest="c" * 64,
        data_fingerprint="d" * 64,
        basis=None,
        files=stage_entries(staging / name),
        metrics={"val_before": 3.0, "val_after": 2.0, "rows": 16.0},
        code_version=__version__,
    )
    store.commit_stack(manifest, staging / name)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: {**old[key], **value} for key, value in new.items() if isinstance(old.get(key), Mapping)}
    return {**old, **new, **both}
