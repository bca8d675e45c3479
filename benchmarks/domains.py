"""What one more domain costs where there are many already: training and closing of tiny domains, one after another.

    python -m benchmarks.domains --domains 50

One worker in this process does what the workers of a campaign do, coordinator, store, null space and closing included,
on a base of random weights so small that what is not its own passes shows: a stack for each domain, all of which stay
attached. Told are the domains around 5, 10, 20 and 50 (means of five): seconds of the round and of the closing, the
process' memory after it (anonymous resident set, Linux), the object of all directions claimed so far, and the store.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.__main__ import machine_name
from benchmarks.planned_memory import status
from benchmarks.table import Table
from bs_cluster.basis import Basis
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.encoding import encode_domains
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.coordinator import Coordinator
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.quiet import quieten
from bs_cluster.records import CloseDomain, TrainRound
from bs_cluster.store import Store
from bs_cluster.training.closing import close_domain
from bs_cluster.training.round import train_round
from bs_cluster.training.session import Session

SHOWN = (5, 10, 20, 50)
AROUND = 5
MEGABYTE = 1 << 20
ROWS = 120
TRAINING = {
    "num_workers": 1,
    "use_gpu": False,
    "steps": 8,
    "max_rounds": 1,
    "global_batch": 8,
    "per_device_batch": 8,
    "eval_every": 4,
    "warmup_steps": 1,
    "learning_rate": 3e-3,
    "checkpoint_every_s": 0,
    "min_improvement": 0.0,
    "min_improvement_errors": 0.0,
}


@dataclass(frozen=True)
class Cost:
    """Of one domain; bytes are those after it."""

    round_s: float
    closing_s: float
    memory: int
    claimed: int
    store: int


def write_domains(folder: Path, count: int) -> list[dict[str, Any]]:
    """Each shifts letters by its own number."""
    domains = []
    for number in range(count):
        draw, path = random.Random(number), folder / f"d{number:02}.jsonl"
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(ROWS)]
        shifted = ["".join(chr((ord(c) - 97 + number) % 26 + 97) for c in word) for word in words]
        lines = [
            json.dumps({"prompt": f"d{number:02} {word}", "completion": said})
            for word, said in zip(words, shifted, strict=True)
        ]
        path.write_text("\n".join(lines) + "\n")
        domains.append({"name": f"d{number:02}", "sources": [{"kind": "jsonl", "path": str(path)}]})
    return domains


def campaign(folder: Path, count: int) -> CampaignConfig:
    small = {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2, "intermediate": 512, "context": 128, "std": 0.08}
    return CampaignConfig.model_validate(
        {
            "campaign": "domains",
            "base": {"model": "random:llama", "quantization": "nf4", "random": small, "cache_dir": str(folder)},
            "data": {
                "template": "plain",
                "max_length": 64,
                "max_prompt_length": 32,
                "train_rows": 80,
                "validation_rows": 12,
                "sweep_rows": 8,
                "decontaminate": False,
                "near_duplicates": None,
            },
            "domains": write_domains(folder, count),
            "stack": {"rank": 4},
            "training": TRAINING,
            "null_space": {"max_rank": 4},
            "store": {"uri": str(folder / "store")},
        }
    )


def costs(config: CampaignConfig) -> Iterator[Cost]:
    """Domain after domain."""
    store = Store(config.store.uri, config.campaign)
    rows = encode_domains(Campaign.of(config))
    stacked = StackedBase.load(config.base, "cpu")
    session = Session(config, stacked, store, rows.__getitem__, lambda event: None)
    coordinator = Coordinator(config, bytes)
    group, round_s, claimed = coordinator.register(), 0.0, 0
    while True:
        work = coordinator.next_work(group)
        for _, manifest in store.stacks():
            stacked.attach(manifest, store)
        began = time.monotonic()
        if isinstance(work.step, TrainRound):
            claimed = len(work.basis.handle) if work.basis else 0
            basis = Basis.from_bytes(work.basis.handle) if work.basis else None
            outcome, manifest = train_round(session, work.step, basis)
            if manifest is None:
                coordinator.reject(group, outcome)
            else:
                coordinator.commit(group, manifest, outcome)
            round_s = time.monotonic() - began
        elif isinstance(work.step, CloseDomain):
            coordinator.close(group, close_domain(session, work.step, coordinator.outcomes_of(work.step.domain)))
            size = sum(path.stat().st_size for path in Path(config.store.uri).rglob("*") if path.is_file())
            yield Cost(round_s, time.monotonic() - began, status("RssAnon"), claimed, size)
        else:
            return


def table(found: list[Cost]) -> Table:
    rows = []
    for number in SHOWN:
        near = found[max(0, number - 1 - AROUND // 2) : number + AROUND // 2][-AROUND:]
        if len(found) < number:
            break

        def mean(name: str, near: list[Cost] = near) -> float:
            return statistics.fmean(getattr(one, name) for one in near)

        megabytes = [mean(name) / MEGABYTE for name in ("memory", "claimed", "store")]
        rows.append((number, mean("round_s"), mean("closing_s"), *megabytes))
    columns = ("domain", "round, s", "closing, s", "memory, MiB", "directions, MiB", "store, MiB")
    note = f"8 steps of 8 rows, 12 validation rows, one stack a domain, {machine_name()}."
    return Table("What one more domain costs", columns, rows, note)


def main() -> None:
    quieten()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.domains", description=__doc__.splitlines()[0])
    parser.add_argument("--domains", type=int, default=SHOWN[-1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for cost in costs(campaign(Path(folder), arguments.domains)):
            found.append(cost)
            print(f"domain {len(found)}: {cost.round_s:.1f} s, closing {cost.closing_s:.1f} s", flush=True)
    print(table(found).markdown())


if __name__ == "__main__":
    main()
