"""Memory of a server's stacks as domains are added: all of them there, or as many as a budget has room for.

    python -m benchmarks.residency --base embedded:gemma3-270m

Requests of one domain after another, each a forward of 64 tokens, twice round; stacks are random and come from a
store on disk. Every row of the table is a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

from benchmarks.__main__ import machine_name
from benchmarks.table import Table
from benchmarks.timing import peak_bytes
from benchmarks.variants import ALPHA, EXPERTS, RANK, TOP_K
from bs_cluster import __version__
from bs_cluster.adapter_format import WEIGHTS_NAME
from bs_cluster.config.schema import BaseSection, StackSection
from bs_cluster.inference.stacked import StackedBase, stack_config
from bs_cluster.records import SCHEMA_VERSION, StackId, StackManifest
from bs_cluster.serving.metrics import Metrics, Prometheus
from bs_cluster.serving.residency import Residency
from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.store.store import Store

CAMPAIGN = "random"
TIMES_ROUND = 2
TOKENS = 64


def load(base: str, device: str) -> StackedBase:
    return StackedBase.load(
        BaseSection(model=base, compute_dtype="bfloat16", cache_dequantized=device == "cpu"), device
    )


def stored(base: str, uri: str, domains: int) -> list[StackManifest]:
    """Random stacks in the store, one a domain."""
    stacked, store, manifests = load(base, "cpu"), Store(uri, CAMPAIGN), []
    sizes = StackSection(rank=RANK, experts=EXPERTS, top_k=TOP_K, alpha=ALPHA)
    for position in range(domains):
        stack = StackId(f"domain{position}", 1)
        config = stack_config(sizes, stack, position)
        name = stacked.begin(config, seed=position)
        stacked.fire([], train=name)
        for site in stacked.tuner.sites:
            nn.init.normal_(site.stack_B[name], std=1e-3)
        with tempfile.TemporaryDirectory() as folder:
            write_adapter(Path(folder), config, stacked.tuner.freeze(name))
            (Path(folder) / "history.jsonl").write_text('{"step": 0, "loss": 0.0}\n')
            files = store.upload_stack(Path(folder))
        if position:
            stacked.drop(name)
        manifests.append(
            StackManifest(
                schema_version=SCHEMA_VERSION,
                campaign=CAMPAIGN,
                stack=stack,
                position=position,
                parents=(),
                context=(),
                base=stacked.base.ref,
                config_digest="0" * 64,
                data_fingerprint="0" * 64,
                basis=None,
                files=files,
                metrics={},
                code_version=__version__,
            )
        )
    return manifests


def served(
    base: str, device: str, uri: str, manifests: Sequence[StackManifest], budget: int | None
) -> tuple[int, float, float]:
    """(bytes that memory rose by above the base with one stack, ms of a request whose stack is there, ms of one whose
    stack has to be read), medians."""
    stacked, store = load(base, device), Store(uri, CAMPAIGN)
    residency = Residency(stacked, budget, Metrics(Prometheus()))
    residency.expect(manifests[0], store)
    ids_1T = torch.arange(TOKENS, device=stacked.base.model.device)[None] + 5
    seconds: dict[bool, list[float]] = {True: [], False: []}

    def ask(manifest: StackManifest) -> None:
        name, came, started = manifest.stack.name, threading.Event(), time.perf_counter()
        here = name in stacked.names
        while not residency.hold([name], (), came.set):
            came.wait()
            came.clear()
        with torch.no_grad(), stacked.tuner.gates(torch.ones(1, 1), [manifest.stack.domain]):
            stacked.base.model(input_ids=ids_1T, logits_to_keep=1).logits.sum().item()
        seconds[here].append(time.perf_counter() - started)

    def work() -> None:
        for manifest in manifests[1:]:
            residency.expect(manifest, store)
        for _ in range(TIMES_ROUND):
            for manifest in manifests:
                ask(manifest)

    ask(manifests[0])
    for each in seconds.values():
        each.clear()
    rise = peak_bytes(work, device)
    return rise, *(1000 * statistics.median(each) if each else float("nan") for each in (seconds[True], seconds[False]))


def measure(base: str, device: str, domains: Sequence[int], room: int) -> Table:
    spawned = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as uri, spawned:
        manifests = spawned.submit(stored, base, uri, max(domains)).result()
        size = manifests[0].file(WEIGHTS_NAME).size // 2  # bfloat16 of what is stored as float32
        table = Table(
            f"Stacks in memory and on disk: {base}",
            ("domains", "room for", "memory, MiB", "ms, a stack that is there", "ms, one that is not"),
            note=f"One stack of {size / 2**20:.0f} MiB a domain, random. Memory is what it rose by above the base and "
            f"one stack; ms are of one request, {TOKENS} tokens forward. {machine_name()}.",
        )
        for count in domains:
            for stacks in (count, room):
                budget = None if stacks == count else stacks * size
                rise, there, read = spawned.submit(served, base, device, uri, manifests[:count], budget).result()
                table.rows.append((count, "all" if budget is None else stacks, rise / 2**20, there, read))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.residency", description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="embedded:gemma3-270m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--domains", type=int, nargs="+", default=[5, 20, 50])
    parser.add_argument("--room", type=int, default=4, help="stacks that the budget has room for")
    arguments = parser.parse_args()
    print(measure(arguments.base, arguments.device, arguments.domains, arguments.room).markdown())


if __name__ == "__main__":
    main()
