"""A server under load: requests of mixed domains at once, against the same ones one at a time.

    python -m benchmarks.serve --store stacks_store --campaign embedded

A ``bs_cluster serve`` process answers over HTTP, routed and greedy. Passes of both kinds take turns, so that a noisy
machine slows both alike; figures are medians over passes, or over all requests of a kind.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from benchmarks.__main__ import machine_name
from benchmarks.table import Table, Target

PROMPTS = (
    "What is your favourite book?",
    "Tell me a joke about computers.",
    "Do you like music?",
    "Write a Python function that returns the larger of two numbers.",
    "Write a Python function that counts the vowels of a text.",
    "Write a Python function that reverses a list.",
    "What is 17 plus 25?",
    "Calculate 144 divided by 12.",
    "What is the next number in the sequence 2, 4, 6, 8?",
    "Which part of the body does Muscle mounding concern?",
    "What is the ICD-10-CM code for Acute bronchitis?",
    "Which category does Type 2 diabetes mellitus belong to?",
    "If all cats are animals and Tom is a cat, is Tom an animal?",
    "Anna is older than Ben. Ben is older than Carl. Who is the youngest?",
    "A coin is flipped twice. Is it heads up?",
    "Was ist die Hauptstadt von Frankreich?",
)


@dataclass(frozen=True)
class Asked:
    """One request: seconds to its first text and to its end, and the tokens of its answer."""

    first_s: float
    whole_s: float
    tokens: int


@dataclass(frozen=True)
class Pass:
    """All prompts once."""

    seconds: float
    asked: Sequence[Asked]

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return sum(one.tokens for one in self.asked) / self.seconds


def ask(url: str, campaign: str, prompt: str, tokens: int) -> Asked:
    body = {
        "model": campaign,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return streamed(f"{url}/v1/chat/completions", body)


def streamed(url: str, body: Mapping[str, Any]) -> Asked:
    """A streamed chat completion, or a completion, of OpenAI's API."""
    started, first, used = time.perf_counter(), None, 0
    with requests.post(url, json=body, stream=True, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line.removeprefix(b"data: "))
            if usage := chunk.get("usage"):
                used = usage["completion_tokens"]
            elif first is None and _said(chunk["choices"][0]):
                first = time.perf_counter() - started
    whole = time.perf_counter() - started
    return Asked(whole if first is None else first, whole, used)


def _said(choice: Mapping[str, Any]) -> str | None:
    return choice["delta"].get("content") if "delta" in choice else choice["text"]


def all_asked(url: str, campaign: str, tokens: int, at_once: int) -> Pass:
    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        asked = list(pool.map(lambda prompt: ask(url, campaign, prompt, tokens), PROMPTS))
    return Pass(time.perf_counter() - started, asked)


@contextmanager
def server(store: str, campaign: str, device: str) -> Iterator[str]:
    """A server of its own with a slot for every prompt; its address."""
    command = [sys.executable, "-m", "bs_cluster.cli", "serve", "--store", store, "--campaign", campaign, "--port", "0"]
    command += ["--device", device, "--max-running", str(len(PROMPTS)), "--max-prompt-tokens", "256"]
    without_key = {name: value for name, value in os.environ.items() if name != "BS_CLUSTER_API_KEY"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without_key)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def seconds_told(url: str, name: str) -> tuple[float, float]:
    """Sum and count of one of the server's own histograms."""
    told = requests.get(f"{url}/metrics", timeout=10).text
    found = [re.search(rf"^bs_cluster_{name}_{part} (\S+)", told, flags=re.M) for part in ("sum", "count")]
    return float(found[0][1]), float(found[1][1])  # type: ignore[index]


def measure(store: str, campaign: str, device: str, tokens: int, rounds: int) -> Table:
    passes: dict[int, list[Pass]] = {1: [], len(PROMPTS): []}
    decisions, decided = 0.0, 0.0
    with server(store, campaign, device) as url:
        for at_once in passes:
            all_asked(url, campaign, tokens, at_once)  # the first of each pays for memory that later ones find
        for _ in range(rounds):
            for at_once, done in passes.items():
                before = seconds_told(url, "routing_seconds")
                done.append(all_asked(url, campaign, tokens, at_once))
                after = seconds_told(url, "routing_seconds")
                if at_once == 1:
                    decisions, decided = decisions + after[0] - before[0], decided + after[1] - before[1]
    table = Table(
        f"Serving {campaign}, {len(PROMPTS)} prompts of mixed domains, answers of up to {tokens} tokens",
        ("requests at once", "tokens/s", "first token s, median", "first token s, worst", "answer s, median"),
        note=f"{rounds} passes of each, taking turns, on {machine_name()}. A meta-router's decision, alone, with what "
        f"it reads of the base: {1000 * decisions / decided:.0f} ms in the mean of {decided:.0f}.",
    )
    speeds = {at_once: statistics.median(one.speed for one in done) for at_once, done in passes.items()}
    for at_once, done in passes.items():
        firsts = [one.first_s for each in done for one in each.asked]
        wholes = [one.whole_s for each in done for one in each.asked]
        table.rows.append((at_once, speeds[at_once], statistics.median(firsts), max(firsts), statistics.median(wholes)))
    ratio = speeds[len(PROMPTS)] / speeds[1]
    table.targets = [Target(f"tokens/s of {len(PROMPTS)} at once / one at a time", ratio, 3.0, at_least=True)]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--store", default="stacks_store")
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer at most")
    parser.add_argument("--rounds", type=int, default=3, help="measured passes of each kind")
    arguments = parser.parse_args()
    found = measure(arguments.store, arguments.campaign, arguments.device, arguments.tokens, arguments.rounds)
    print(found.markdown())


if __name__ == "__main__":
    main()
