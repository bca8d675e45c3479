"""Validation loss by step: our stack, PEFT LoRA with as many parameters, and what becomes of the parts' settings.

    python -m benchmarks.convergence --data chat=chat.jsonl code=code.jsonl --output benchmarks

Rows are JSON lines with ``prompt`` and ``completion``. Every method sees the same rows in the same order; seeds
change rows, order and starting values together. AdamW, linear warm-up over a tenth of the steps, then constant;
gradients clipped at 1. Writes CONVERGENCE.md, convergence.json and convergence.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from peft import get_peft_model
from torch import nn

from benchmarks.__main__ import machine_name
from benchmarks.lora import lora_config, packed_nll
from bs_cluster.base.load import LoadedBase, load_base
from bs_cluster.config.schema import BaseSection, DataSection
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow, encode_rows
from bs_cluster.data.rows import make_row
from bs_cluster.quiet import KEEP_FREED_MEMORY, quieten
from bs_cluster.report.style import BLUE, FAINT, GOLD, GREY, INK, PALE_BLUE, PALE_RED, RED, new_figure, save, style
from bs_cluster.stacks import StackConfig, StackModel
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.stacks.model import SEVEN_PROJECTIONS

EVAL_EVERY = 10
EVAL_ROWS, EVAL_TOKENS = 32, 1024


@dataclass(frozen=True)
class Method:
    """``alpha`` is rsLoRA's: the delta is scaled by alpha/sqrt(rank)."""

    name: str
    learning_rate: float
    rank: int = 16
    alpha: float = 16.0
    experts: int = 4
    top_k: int = 2
    b_ratio: float = 1.0
    router_std: float = 0.02
    noise: bool = True
    balance: float = 0.01
    lora: bool = False


METHODS = {
    method.name: method
    for method in (
        # Scaled so that a step of Adam moves the output as far as our stack's does, the best of those tried.
        Method("LoRA r=64", 2e-4, rank=64, alpha=8.0, lora=True),
        Method("LoRA r=256", 2e-4, rank=256, alpha=4.0, lora=True),
        Method("stack", 2e-4),
        Method("stack, no noise, sharper", 2e-4, noise=False, router_std=0.1),
        # Tried on one seed of each domain.
        Method("LoRA r=64, half the rate", 1e-4, rank=64, alpha=8.0, lora=True),
        Method("LoRA r=64, scale 2", 2e-4, rank=64, alpha=16.0, lora=True),
        Method("LoRA r=64, scale 8", 2e-4, rank=64, alpha=64.0, lora=True),
        Method("LoRA r=256, alpha 8", 2e-4, rank=256, alpha=8.0, lora=True),
        Method("stack, twice the rate", 4e-4),
        Method("stack, no noise", 2e-4, noise=False),
        Method("stack, no noise, sharpest", 2e-4, noise=False, router_std=0.3),
        Method("stack, no noise, no balance", 2e-4, noise=False, balance=0.0),
        Method("stack, no noise, half the rate", 1e-4, noise=False),
        Method("stack, no noise, all four fire", 2e-4, noise=False, top_k=4),
    )
}
REFERENCE = "LoRA r=64"


@dataclass
class Curve:
    method: str
    domain: str
    seed: int
    parameters: int
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)


def train(
    method: Method, base: LoadedBase, rows: list[EncodedRow], held: list[EncodedRow], seed: int, arguments
) -> Curve:
    torch.manual_seed(seed)
    backward, parts, model, parameters = (_lora if method.lora else _stack)(method, base)
    groups = [
        {"params": [p for name, p in parts if not _is_b(name)], "lr": method.learning_rate},
        {"params": [p for name, p in parts if _is_b(name)], "lr": method.learning_rate * method.b_ratio},
    ]
    adam = torch.optim.AdamW(groups, weight_decay=0.0)
    warmup = max(1, arguments.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, (step + 1) / warmup))
    curve = Curve(method.name, rows[0].domain, seed, parameters)
    for step in range(arguments.steps + 1):
        if step % EVAL_EVERY == 0:
            curve.steps.append(step)
            curve.loss.append(_validate(model, base, held))
            print(
                f"{method.name:<40} {rows[0].domain:<6} seed {seed}  step {step:>3}  {curve.loss[-1]:.4f}", flush=True
            )
        if step == arguments.steps:
            break
        model.train()
        backward(rows[step * arguments.batch : (step + 1) * arguments.batch])
        nn.utils.clip_grad_norm_([p for _, p in parts], 1.0)
        adam.step()
        schedule.step()
        adam.zero_grad()
    return curve


Backward = Callable[[list[EncodedRow]], None]
Built = tuple[Backward, list[tuple[str, nn.Parameter]], nn.Module, int]


def _stack(method: Method, base: LoadedBase) -> Built:
    config = StackConfig(
        rank=method.rank,
        experts=method.experts,
        top_k=method.top_k,
        alpha=method.alpha,
        router_init_std=method.router_std,
        target_modules=list(SEVEN_PROJECTIONS),
        domain="d",
    )
    peft = get_peft_model(base.model, config, adapter_name="d_r1")
    tuner: StackModel = peft.base_model
    tuner.cache_weights()
    balance = LoadBalance(method.experts, method.top_k, method.balance, len(tuner.sites), torch.device("cpu"))

    def backward(rows: list[EncodedRow]) -> None:
        tokens = sum(len(row.input_ids) for row in rows)
        noise_PET = torch.randn(len(tuner.sites), method.experts, tokens) if method.noise else None
        with tuner.training_step(Training(noise_PET, None, tokens, balance)):
            packed_nll(base.model, rows).mean().backward()
        balance.finish_step(balance.totals())

    parts = [(name, p) for name, p in peft.named_parameters() if p.requires_grad]
    return backward, parts, peft, sum(p.numel() for _, p in parts)


def _lora(method: Method, base: LoadedBase) -> Built:
    config = lora_config(method.rank, method.alpha / method.rank**0.5)
    peft = get_peft_model(base.model, config)  # adapters in fp32, as our stacks' master weights are
    parts = [(name, p) for name, p in peft.named_parameters() if p.requires_grad]

    def backward(rows: list[EncodedRow]) -> None:
        packed_nll(base.model, rows).mean().backward()

    return backward, parts, peft, sum(p.numel() for _, p in parts)


def _is_b(name: str) -> bool:
    return "lora_B" in name or "stack_B" in name


@torch.no_grad()
def _validate(model: nn.Module, base: LoadedBase, held: list[EncodedRow]) -> float:
    model.eval()
    plan = plan_batches([len(row.input_ids) for row in held], EVAL_TOKENS)
    losses = torch.cat([packed_nll(base.model, [held[i] for i in batch]) for batch in plan])
    return float(losses.double().mean())


def read_rows(path: Path, domain: str, base: LoadedBase, data: DataSection) -> list[EncodedRow]:
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [make_row(row["prompt"], row["completion"], domain) for row in raw]
    encoded = encode_rows(rows, base.tokenizer, data)
    return [row for row in encoded if row.completion_length >= 4]


def main() -> None:
    arguments = _arguments()
    paths = dict(pair.split("=", 1) for pair in arguments.data)
    tasks = list(itertools.product(paths.items(), arguments.seeds, arguments.methods))
    os.environ.update(KEEP_FREED_MEMORY)  # glibc reads it as each process starts
    curves: list[Curve] = []
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn"), quieten) as pool:
        for curve in pool.map(_run, itertools.repeat(arguments), *zip(*tasks, strict=True)):
            curves.append(curve)
            if arguments.output:
                _save(arguments.output, curves)


def _run(arguments: argparse.Namespace, data: tuple[str, str], seed: int, method: str) -> Curve:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    domain, path = data
    base = load_base(BaseSection(model=arguments.base, compute_dtype="bfloat16"), device="cpu")
    half = arguments.max_length // 2
    section = DataSection(template="plain", max_length=arguments.max_length, max_prompt_length=half)
    rows = read_rows(Path(path), domain, base, section)
    random.Random(seed).shuffle(rows)
    held, rows = rows[:EVAL_ROWS], rows[EVAL_ROWS:]
    if len(rows) < arguments.steps * arguments.batch:
        rows = rows * (arguments.steps * arguments.batch // len(rows) + 1)
    return train(METHODS[method], base, rows, held, seed, arguments)


def _save(folder: Path, curves: list[Curve]) -> None:
    told = {
        "machine": machine_name(),
        "command": "python -m benchmarks.convergence " + " ".join(sys.argv[1:]),
        "curves": [vars(curve) for curve in curves],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "convergence.json").write_text(json.dumps(told, indent=1) + "\n")
    (folder / "CONVERGENCE.md").write_text(_markdown(told, curves))
    with style():
        save(_figure(curves), folder / "convergence.png")


def _markdown(told: dict, curves: list[Curve]) -> str:
    lines = [
        "# Convergence",
        "",
        f"Written by `{told['command']}`.",
        "",
        f"{told['machine']}. Validation loss in nats per completion token on {EVAL_ROWS} rows never trained on.",
        "",
        "![Validation loss by step](convergence.png)",
        "",
        "| domain | method | parameters | seeds | loss at the end | ± over seeds "
        f"| against {REFERENCE} | steps to {REFERENCE}'s end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ends = {(curve.domain, curve.seed): curve.loss[-1] for curve in curves if curve.method == REFERENCE}
    for domain, method, own in _groups(curves):
        final = [curve.loss[-1] for curve in own]
        spread = f"{statistics.stdev(final):.3f}" if len(final) > 1 else ""
        pairs = [(curve, ends[key]) for curve in own if (key := (curve.domain, curve.seed)) in ends]
        against = ", ".join(f"{curve.loss[-1] - end:+.3f}" for curve, end in pairs) if method != REFERENCE else ""
        steps = [steps_to(curve, end) for curve, end in pairs]
        reached = ", ".join("not reached" if step is None else f"{step:.0f}" for step in steps)
        lines.append(
            f"| {domain} | {method} | {own[0].parameters / 1e6:.2f} M | {len(own)} | {statistics.mean(final):.3f} "
            f"| {spread} | {against} | {reached} |"
        )
    lines += [
        "",
        "The last two columns are seed by seed, on the same rows in the same order, and steps are interpolated between "
        f"measurements {EVAL_EVERY} apart.",
    ]
    return "\n".join(lines) + "\n"


def steps_to(curve: Curve, loss: float) -> float | None:
    """The step at which the curve first is as low as ``loss``, None if it never is."""
    points = list(zip(curve.steps, curve.loss, strict=True))
    for (step, before), (next_step, after) in itertools.pairwise(points):
        if after <= loss:
            return step + (next_step - step) * (before - loss) / (before - after)
    return None


def _groups(curves: list[Curve]) -> list[tuple[str, str, list[Curve]]]:
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.domain, curve.method), []).append(curve)
    return [(domain, method, own) for (domain, method), own in groups.items()]


def _figure(curves: list[Curve]) -> Figure:
    """Differences to the reference, seed by seed: how hard a seed's rows are would hide everything else."""
    reference = {(curve.domain, curve.seed): curve for curve in curves if curve.method == REFERENCE}
    compared = [curve for curve in curves if (curve.domain, curve.seed) in reference and curve.method != REFERENCE]
    domains = list(dict.fromkeys(curve.domain for curve in compared)) or [""]
    methods = list(dict.fromkeys(curve.method for curve in compared))
    figure = new_figure(
        max(7.2, 4.2 * len(domains)),
        3.2,
        f"How much lower or higher than {REFERENCE} the validation loss is",
        "Nats per completion token by training step. Thin lines are seeds, thick ones their mean; below zero is better",
    )
    colours = dict(zip(methods, [INK, RED, BLUE, GOLD, PALE_BLUE, PALE_RED] * 3, strict=False))
    panels = figure.subplots(1, len(domains), squeeze=False, sharey=True)[0]
    for axes, domain in zip(panels, domains, strict=True):
        axes.set_title(domain, loc="left", fontsize=10.5, fontweight="bold", color=INK)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.axhline(0, color=GREY, linewidth=1.2)
        for name, method, own in _groups(compared):
            if name != domain:
                continue
            gaps = [
                [a - b for a, b in zip(curve.loss, reference[domain, curve.seed].loss, strict=False)] for curve in own
            ]
            for gap in gaps:
                axes.plot(own[0].steps[: len(gap)], gap, color=colours[method], linewidth=0.8, alpha=0.4)
            means = [statistics.mean(column) for column in zip(*gaps, strict=False)]
            axes.plot(own[0].steps[: len(means)], means, color=colours[method], linewidth=2.0, label=method)
        axes.set_xlabel("step")
    panels[0].set_ylabel(f"loss − {REFERENCE}'s")
    if compared:
        panels[0].legend(fontsize=8.5, loc="best")
    return figure


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="domain=file.jsonl")
    parser.add_argument("--base", default="embedded:gemma3-270m")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--threads", type=int, default=0, help="torch threads of a process; as found by torch if 0")
    parser.add_argument("--processes", type=int, default=1, help="curves trained at the same time")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
