"""Peak memory of a training step, each variant in a process of its own, and what autograd keeps for backward."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict

import torch

from benchmarks.settings import Settings
from benchmarks.table import Table, Target
from benchmarks.timing import peak_bytes, saved_bytes
from benchmarks.variants import Variant, frozen_base, our_stacks, peft_lora, textbook_stacks

VARIANTS = (
    "frozen base",
    "PEFT LoRA r=64",
    "one stack",
    "one stack, textbook form",
    "one stack beside 9",
    "one stack beside 4",
    "one stack beside 4, textbook form",
)


def measure(settings: Settings) -> list[Table]:
    rows = []
    for name in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.memory", name, json.dumps(asdict(settings))]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        peak, kept, sites = json.loads(answer)
        rows.append((name, peak / 2**20, kept / 2**20, kept / 2**20 / sites))
    table = Table(
        f"Memory of a training step: {settings.base}",
        ("what", "peak MiB above rest", "kept for backward MiB", "per site MiB"),
        rows,
        note="Each in a process of its own, base weights not cached, second step. What is kept counts every storage "
        "once and no weights; it is the whole model's, divided by its wrapped projections.",
    )
    peak = {row[0]: row[1] for row in rows}
    table.targets = [Target("peak of one stack / PEFT LoRA r=64", peak["one stack"] / peak["PEFT LoRA r=64"], 1.0)]
    return [table]


def _variant(name: str, settings: Settings) -> Variant:
    where = (settings.base, settings.device, settings.rows, settings.tokens)
    if name == "frozen base":
        return frozen_base(*where)
    if name.startswith("PEFT"):
        return peft_lora(*where)
    frozen = next((count for count in (4, 9) if f"beside {count}" in name), 0)
    if name.endswith("textbook form"):
        return textbook_stacks(*where, frozen, learns=True)
    return our_stacks(*where, frozen, learns=True, cached=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="One variant, as measure() asks.")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("settings", type=json.loads, metavar="JSON")
    arguments = parser.parse_args()
    settings = Settings(**arguments.settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    variant = _variant(arguments.variant, settings)
    layers = variant.model.config.get_text_config().num_hidden_layers
    variant.step()
    kept = saved_bytes(variant.loss, variant.model)
    print(json.dumps([peak_bytes(variant.step, settings.device), kept, 7 * layers]))


if __name__ == "__main__":
    main()
