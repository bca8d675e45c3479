"""Runs a function on real gloo ranks, a process each, and brings back what every rank returned.

results = on_ranks(2, scenario, argument)        # results[rank]
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

BUILT = "built"
# Forked from a process that has imported what every rank imports, and done nothing else.
multiprocessing.set_forkserver_preload(["bs_cluster.training.round", "bs_cluster.campaign.encoding"])
COLLECTIVE_TIMEOUT = timedelta(seconds=90)


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(*arguments)`` on every rank; an exception on one of them is raised here and ends the others."""
    with tempfile.TemporaryDirectory() as folder:
        work = (world, _free_port(), folder, function, arguments)
        mp.start_processes(_rank, work, nprocs=world, start_method="forkserver")
        assert not (Path(folder) / BUILT).exists(), "DeepSpeed compiled something; a node may have no compiler"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {key: str(value) for key, value in ours.items()}
    os.environ["TORCH_EXTENSIONS_DIR"] = str(Path(folder) / BUILT)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
