"""Side by side: cases take turns, so that a noisy machine slows all of them alike, and medians are compared."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Step = Callable[[], object]


def take_turns(cases: Mapping[str, Step], rounds: int, device: str, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every call, by case: ``warmup`` unmeasured turns and then ``rounds`` measured ones.

    A turn begins with the first case unmeasured: it would else pay for the memory that the last one gave back.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    first = next(iter(cases.values()))
    for turn in range(warmup + rounds):
        first()
        for name, step in cases.items():
            print(f"\r{name[:60]:<60} turn {turn + 1}/{warmup + rounds}", end="", file=sys.stderr, flush=True)
            started = _now(device)
            step()
            if turn >= warmup:
                seconds[name].append(_now(device) - started)
    print("\r" + " " * 80 + "\r", end="", file=sys.stderr, flush=True)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(step: Step, device: str) -> int:
    """How far memory rises above what it was before ``step``; on a CPU the process's resident set (Linux)."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would hide a part of this one's rise
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    step()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; memory is measured on Linux only")


def saved_bytes(step: Step, model: torch.nn.Module) -> int:
    """Bytes that autograd keeps for backward during ``step``, each storage counted once; what ``model`` holds anyway,
    its parameters, buffers and views of them, does not count."""
    held = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(storages.values())
