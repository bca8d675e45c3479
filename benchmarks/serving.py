"""What serving a prompt pays before the first token: encoding it, deciding, and bringing a stack in from disk."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.settings import Settings
from benchmarks.sweep import RandomEvaluator, prompts
from benchmarks.table import Table
from benchmarks.timing import medians, take_turns
from bs_cluster.inference.evaluator import encode_states
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.familiar import Kinds
from bs_cluster.router.fit import Served
from bs_cluster.router.learned import Gates, gate_inputs
from bs_cluster.router.routers import AnchoredRouter
from bs_cluster.stacks.adapter_files import write_adapter

DOMAINS = 5
PROMPTS = 500  # of each domain that the meta-router knows


def measure(settings: Settings) -> list[Table]:
    domains = [f"domain{d}" for d in range(DOMAINS)]
    evaluator = RandomEvaluator(settings.base, settings.device, domains, settings.threads)
    stacked = evaluator.stacked
    config = stacked.base.model.config.get_text_config()
    rows = prompts(config.vocab_size, 1)
    prompt = rows[0].input_ids[: rows[0].prompt_length]
    known = np.random.default_rng(0).normal(size=(DOMAINS * PROMPTS, 2 * config.hidden_size)).astype(np.float32)
    anchor = fit_anchor(known, np.repeat(np.arange(DOMAINS), PROMPTS), DOMAINS)
    inputs = gate_inputs(anchor, known[:1]).inputs_BP.shape[1]
    kinds = Kinds.of(anchor, anchor.bank_NK[::DOMAINS], ["mixed:kind"] * PROMPTS)
    learned = Gates(np.zeros((inputs, DOMAINS)), everywhere=True)
    served = Served(AnchoredRouter(anchor, kinds, learned), tuple(range(1 << DOMAINS)), None)
    states = encode_states(stacked, [prompt], 0.45, pooled=True)

    cases = {
        "encode the prompt (base alone)": lambda: encode_states(stacked, [prompt], 0.45, pooled=True),
        "decide (meta-router)": lambda: served.gates(states),
        "score the row, all five domains on": lambda: evaluator.score(rows, [[1.0] * DOMAINS]),
    }
    seconds = medians(take_turns(cases, settings.rounds * 4, settings.device))
    table = Table(
        f"Per prompt and per stack: {settings.base}",
        ("what", "ms"),
        [(name, value * 1000) for name, value in seconds.items()],
        note=f"A prompt of {len(prompt)} tokens; ten stacks resident.",
    )
    table.rows += [(name, value * 1000) for name, value in swap_in(evaluator, settings).items()]
    return [table]


def swap_in(evaluator: RandomEvaluator, settings: Settings) -> dict[str, float]:
    """A stack leaves and comes back from a folder; then the first forward packs it among the others."""
    stacked, name = evaluator.stacked, evaluator.stacked.names[-1]
    rows = prompts(stacked.base.model.config.get_text_config().vocab_size, 1)
    weights = [[1.0] * DOMAINS]
    read, first = [], []
    with tempfile.TemporaryDirectory() as folder:
        assert stacked.peft is not None
        write_adapter(Path(folder), stacked.tuner.peft_config[name], stacked.tuner.folded(name))
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        for _ in range(max(3, settings.rounds)):
            stacked.tuner.delete_adapter(name)
            evaluator.score(rows, weights)
            started = time.perf_counter()
            stacked.peft.load_adapter(folder, adapter_name=name)
            stacked.fire(stacked.names)
            read.append(time.perf_counter() - started)
            started = time.perf_counter()
            evaluator.score(rows, weights)
            first.append(time.perf_counter() - started)
    return {
        f"read a stack from disk ({size:.0f} MiB, fp32)": sorted(read)[len(read) // 2],
        "first row scored with it (packs all ten)": sorted(first)[len(first) // 2],
    }
