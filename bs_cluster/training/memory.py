"""Giving memory back between rounds. A worker lives as long as its campaign, so what a round leaves would add up."""

from __future__ import annotations

import ctypes
import gc

import torch


def release_memory() -> None:
    """Collects reference cycles (a trainer is full of them) and hands freed pages back: the allocator's on a GPU,
    glibc's on a CPU, where workers are told to keep freed memory while they train (``campaign/connect.py``)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)
