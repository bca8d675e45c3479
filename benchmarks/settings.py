"""What a run of the benchmark is told, the same for every section."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    base: str
    device: str = "cpu"
    threads: int = 0  # 0: as torch finds it
    rows: int = 4
    tokens: int = 256
    rounds: int = 5
