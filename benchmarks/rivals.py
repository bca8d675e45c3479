"""The same requests, of mixed domains, answered by our engine and by what one would serve with instead, in one run.

PEFT holds a LoRA for each domain, of as many parameters as the domain's stacks, and switches to a request's own before
it answers it. ``transformers serve`` has the base alone, behind HTTP. Every way answers all prompts in each turn.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.generation import BaseStreamer

from benchmarks.lora import lora_config
from benchmarks.serve import PROMPTS, Asked, Pass, streamed
from benchmarks.serving import swap_in
from benchmarks.settings import Settings
from benchmarks.sweep import DOMAIN_SIZE, EXPERTS, RANK, RandomEvaluator
from benchmarks.table import Table, Target
from bs_cluster.base.load import LoadedBase, load_base
from bs_cluster.base.prepare import prepare_base
from bs_cluster.config.schema import BaseSection
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.serving.engine import Engine, Row
from bs_cluster.serving.sampling import Sampling

DOMAINS = tuple(f"domain{d}" for d in range(5))
ANSWER_TOKENS = 32
START_TIMEOUT_S = 300

Case = Callable[[], Pass]


def measure(settings: Settings) -> list[Table]:
    tokens = min(ANSWER_TOKENS, settings.tokens)
    evaluator = RandomEvaluator(settings.base, settings.device, DOMAINS, settings.threads)
    stacked = evaluator.stacked
    prompts = [stacked.base.tokenizer(text)["input_ids"] for text in PROMPTS]
    base = BaseSection(model=settings.base, compute_dtype="bfloat16")
    if settings.device == "cpu":  # as our own, which keeps the weights dequantised there
        base = base.model_copy(update={"quantization": "none"})
    swapped = Swapped(load_base(base, device=settings.device))
    with transformers_serve(base, settings) as url:
        cases: dict[tuple[str, int], Case] = {
            ("our engine, a domain's stacks a request", 1): lambda: engine_pass(stacked, prompts, tokens, 1),
            ("our engine, a domain's stacks a request", 16): lambda: engine_pass(stacked, prompts, tokens, 16),
            ("PEFT, a LoRA a request", 1): lambda: swapped.answer_all(prompts, tokens),
            ("transformers serve, the base alone", 1): lambda: http_pass(url, str(prepare_base(base)), tokens, 1),
            ("transformers serve, the base alone", 16): lambda: http_pass(url, str(prepare_base(base)), tokens, 16),
        }
        passes: dict[tuple[str, int], list[Pass]] = {case: [] for case in cases}
        for turn in range(1 + settings.rounds):
            for case, answer_all in cases.items():
                print(
                    f"{case[0]}, {case[1]} at once, turn {turn + 1}/{1 + settings.rounds}", file=sys.stderr, flush=True
                )
                done = answer_all()
                if turn:  # the first pays for memory that later ones find
                    passes[case].append(done)
    batching = (
        ""
        if settings.device == "cuda"
        else ", without its continuous batching, which gave no answer in 20 s on a CPU (one try)"
    )
    table = Table(
        f"{len(prompts)} requests of {len(DOMAINS)} domains, {tokens} tokens each: {settings.base}",
        ("what", "at once", "tokens/s", "first token s, median", "first token s, worst", "answer s, median"),
        note=f"{DOMAIN_SIZE} stacks of a domain, or a LoRA of rank {EXPERTS * RANK * DOMAIN_SIZE}; gates are given, so "
        f"nobody routes. Ours and PEFT's in this process; transformers serve in its own{batching}.",
    )
    speeds = {case: statistics.median(one.speed for one in done) for case, done in passes.items()}
    for case, done in passes.items():
        firsts = [one.first_s for each in done for one in each.asked]
        wholes = [one.whole_s for each in done for one in each.asked]
        table.rows.append((*case, speeds[case], statistics.median(firsts), max(firsts), statistics.median(wholes)))
    alone, together, *others = speeds.values()
    table.targets = [Target("tokens/s of 16 at once / one at a time, ours", together / alone, 3.0, at_least=True)]
    table.targets += [
        Target(f"tokens/s of 16 at once, ours / {what}, {at_once} at once", together / speed, 1.0, at_least=True)
        for (what, at_once), speed in zip(list(speeds)[2:], others, strict=True)
    ]
    return [table, _changes(evaluator, swapped, settings)]


def engine_pass(stacked: StackedBase, prompts: Sequence[Sequence[int]], tokens: int, at_once: int) -> Pass:
    """``at_once`` clients, each with its next prompt when it has its answer."""
    engine = Engine(stacked, at_once, max(map(len, prompts)) + tokens)
    waiting = deque(
        Row(prompt, {DOMAINS[place % len(DOMAINS)]: 1.0}, Sampling(), tokens) for place, prompt in enumerate(prompts)
    )
    rows, came, first, ended = list(waiting), {}, {}, {}
    started = time.perf_counter()
    while waiting or engine.rows:
        if new := [waiting.popleft() for _ in range(min(engine.free, len(waiting)))]:
            came |= dict.fromkeys(new, time.perf_counter())
            engine.join(new)
        else:
            engine.step()
        now = time.perf_counter()
        first |= {row: now for row in rows if row.tokens and row not in first}
        ended |= {row: now for row in rows if row.ended and row not in ended}
    asked = [Asked(first[row] - came[row], ended[row] - came[row], len(row.tokens)) for row in rows]
    return Pass(time.perf_counter() - started, asked)


class FirstToken(BaseStreamer):
    """When generation gave its first token: transformers hands over the prompt, then each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Swapped:
    """PEFT's own way to serve several adapters: one model, the request's adapter switched to before each."""

    def __init__(self, base: LoadedBase):
        config = lora_config(EXPERTS * RANK * DOMAIN_SIZE, 1.0)
        self.model: PeftModel = get_peft_model(base.model, config, adapter_name=DOMAINS[0])  # type: ignore[assignment]
        for domain in DOMAINS[1:]:
            self.model.add_adapter(domain, config)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=1e-3)
        self.model.to(base.model.dtype).eval()
        self._pad = base.tokenizer.pad_token_id

    def answer_all(self, prompts: Sequence[Sequence[int]], tokens: int) -> Pass:
        asked, started = [], time.perf_counter()
        for place, prompt in enumerate(prompts):
            came, streamer = time.perf_counter(), FirstToken()
            self.model.set_adapter(DOMAINS[place % len(DOMAINS)])
            ids_1T = torch.tensor([prompt], device=self.model.device)
            with torch.no_grad():
                made_1T = self.model.generate(
                    input_ids=ids_1T,
                    attention_mask=torch.ones_like(ids_1T),
                    max_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=self._pad,
                    streamer=streamer,
                )
            made = made_1T.shape[1] - len(prompt)
            asked.append(Asked(streamer.times[1] - came, time.perf_counter() - came, made))
        return Pass(time.perf_counter() - started, asked)

    def switch(self) -> float:
        """Seconds to switch from one adapter to another, both in memory."""
        self.model.set_adapter(DOMAINS[0])
        started = time.perf_counter()
        self.model.set_adapter(DOMAINS[1])
        return time.perf_counter() - started

    def read(self, folder: Path) -> float:
        """Seconds to bring an adapter in from a folder."""
        started = time.perf_counter()
        self.model.load_adapter(str(folder / DOMAINS[0]), adapter_name="another")
        self.model.set_adapter("another")
        seconds = time.perf_counter() - started
        self.model.delete_adapter("another")
        return seconds


def _changes(evaluator: RandomEvaluator, swapped: Swapped, settings: Settings) -> Table:
    times = max(3, settings.rounds)
    with tempfile.TemporaryDirectory() as folder:
        swapped.model.save_pretrained(folder, selected_adapters=[DOMAINS[0]])
        reads = [swapped.read(Path(folder)) for _ in range(times)]
    rows = [
        ("PEFT: switch to another LoRA in memory", 1000 * statistics.median(swapped.switch() for _ in range(times))),
        ("PEFT: read a LoRA from disk and switch to it", 1000 * statistics.median(reads)),
        ("ours: other gates, a weight of the row", 0.0),
        *((f"ours: {what}", 1000 * seconds) for what, seconds in swap_in(evaluator, settings).items()),
    ]
    return Table(f"From one request's adapter to the next one's: {settings.base}", ("what", "ms"), list(rows))


@contextmanager
def transformers_serve(base: BaseSection, settings: Settings) -> Iterator[str]:
    """transformers' own server on this base; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    on_gpu = ["--continuous-batching", "--quantization", "bnb-4bit"] if settings.device == "cuda" else []
    transformers = str(Path(sys.executable).parent / "transformers")
    command = [transformers, "serve", str(prepare_base(base)), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", settings.device, "--dtype", "bfloat16", *on_gpu]
    threads = {"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {}
    process = subprocess.Popen(
        command, env={**os.environ, **threads}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_TIMEOUT_S
    try:
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{' '.join(command)} does not answer; run it to see why")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


def http_pass(url: str, model: str, tokens: int, at_once: int) -> Pass:
    def ask(prompt: str) -> Asked:
        return streamed(
            f"{url}/v1/completions",
            {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "stream": True},
        )

    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        asked = list(pool.map(ask, PROMPTS))
    return Pass(time.perf_counter() - started, asked)
