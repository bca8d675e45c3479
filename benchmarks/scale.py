"""What the driver of a sweep and its meta-router costs by rows and domains: seconds, memory, CPU a batch.

    python -m benchmarks.scale --rows 10000 30000 100000 --domains 5 20 50

Losses and states come from a formula, by one evaluator on Ray: what is measured is everything else, the product's own
path from the search to the file of all outcomes. Rows are made as they are asked for. Each case has a process of its
own; memory is the highest that its resident set reached in a phase, above where it began.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ray

from benchmarks.evaluators import local_ray
from benchmarks.table import Table
from bs_cluster.campaign.bundle import write_outcomes
from bs_cluster.config.schema import RouterSection, SweepSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.quiet import quieten
from bs_cluster.records import RowLoss
from bs_cluster.report.gains import mask_gains
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.fit import Lessons, teach
from bs_cluster.router.folds import deal_folds, sample_rows
from bs_cluster.router.judging import judge_shard
from bs_cluster.router.regret import Judged, routing_report
from bs_cluster.store import SweepArea
from bs_cluster.store.filesystem import LocalFiles
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.shards import read_shards
from bs_cluster.sweep.sweep import encode_prompts, run_sweep, score_gates

PHASES = ("sweep", "learn", "judge", "write")
FEATURES = 64
PROMPT_TOKENS = 16
TRAINING_PROMPTS = 100
MEGABYTE = 1 << 20
# A quarter of the default: what learning costs does not hang on the rows swept.
LEARNED = {"learn_rows": 1000, "learn_combinations": 128}


class Rows(Sequence[EncodedRow]):
    """Rows by number, made when asked for. The first tokens say whose a row is and which, which is all that the formula
    wants to know. One in ten asks for two domains, one in fifty for none."""

    def __init__(self, count: int, domain_count: int):
        self.count, self.domain_count = count, domain_count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row):  # type: ignore[override]
        if row >= self.count:
            raise IndexError(row)
        own = row % self.domain_count
        owner = f"foreign:{row % 8}" if row % 50 == 1 else f"mixed:{row % 8}" if row % 10 == 0 else f"domain{own:02}"
        need = {"f": 0, "m": 2, "d": 1}[owner[0]]
        completion = 8 + row * 7 % 17
        ids = (own, need, row & 0xFFFF, row >> 16, *range(PROMPT_TOKENS + completion - 4))
        return EncodedRow(ids, PROMPT_TOKENS, f"q{row:08}", owner)


class Prompts(Sequence[tuple[int, ...]]):
    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row):  # type: ignore[override]
        return self.rows[row].input_ids[:PROMPT_TOKENS]


class FormulaEvaluator:
    """A row's domains gain, every other one costs, and each loss has its own small share that no other has."""

    def __init__(self):
        self.calls = 0

    def score(self, rows: Sequence[EncodedRow], weights: Sequence[Sequence[float]]) -> tuple[RowLoss, ...]:
        self.calls += 1
        weight_ND = np.array(weights)
        domain_count = weight_ND.shape[1]
        own_N, need_N, low_N, high_N = np.array([row.input_ids[:4] for row in rows]).T
        row_N = low_N + (high_N << 16)
        places = np.arange(len(rows))
        gain_N = 0.8 * weight_ND[places, own_N] * (need_N > 0)
        gain_N += 0.5 * weight_ND[places, (own_N + 1 + row_N % 3) % domain_count] * (need_N > 1)
        share_N = np.sin(row_N + weight_ND @ np.arange(1.0, domain_count + 1))
        loss_N = 3.0 - gain_N + 0.4 * weight_ND.mean(axis=1) + 0.05 * share_N
        tokens = [row.completion_length for row in rows]
        return tuple(RowLoss(loss * count, count) for loss, count in zip(loss_N.tolist(), tokens, strict=True))

    def encode(self, prompts: Sequence[Sequence[int]], pooled: bool) -> list[np.ndarray]:
        assert pooled
        own_B, need_B, low_B, high_B = np.array([prompt[:4] for prompt in prompts]).T
        features = np.arange(1.0, FEATURES + 1)
        near_BF = np.cos(np.outer(own_B * 13 + 1, features)) + np.cos(np.outer(need_B * 7 + 100, features))
        return list((near_BF + 0.4 * np.sin(np.outer(low_B + (high_B << 16), features))).astype(np.float32))

    def called(self) -> int:
        return self.calls


@dataclass
class Costs:
    """Of each phase: seconds, seconds of this process' CPU, and its highest resident set in MB above the start's."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    begun: float = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name], self.cpu[name] = time.perf_counter() - wall, time.process_time() - cpu
        self.peak[name] = resident("VmHWM") - self.begun


def resident(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def case(count: int, domain_count: int, folder: Path) -> dict:
    """One sweep with all that follows it."""
    domains = [f"domain{d:02}" for d in range(domain_count)]
    rows, sweep, router = Rows(count, domain_count), SweepSection(), RouterSection(**LEARNED)
    prompts, area, costs = Prompts(rows), SweepArea(LocalFiles(folder), "sweep"), Costs()
    evaluators = [ray.remote(FormulaEvaluator).options(num_cpus=0).remote()]
    ray.get(evaluators[0].called.remote())
    costs.begun = resident("VmRSS")

    with costs.phase("sweep"):
        ids, owners = [row.id for row in rows], [row.domain for row in rows]
        fold_B = deal_folds(ids, owners, domains, router.folds)
        taught = sample_rows(ids, owners, router.learn_rows)
        table = OutcomeTable([ids[row] for row in taught], [owners[row] for row in taught], domains)
        del ids, owners
        outcomes = 0
        for shard in run_sweep(evaluators, rows, domains, sweep, area, lambda *_: None):
            table.update(shard.table)
            outcomes += len(shard.table)
    batches = ray.get(evaluators[0].called.remote())

    def encode(some: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return encode_prompts(evaluators, some, sweep, pooled=True)

    with costs.phase("learn"):
        states = dict(zip(taught.tolist(), encode([prompts[row] for row in taught.tolist()]), strict=True))
        training = [(d, (d, 1, row, 0xFFFF)) for d in range(domain_count) for row in range(TRAINING_PROMPTS)]
        features = np.stack(encode([prompt for _, prompt in training]))
        anchor = fit_anchor(features, [d for d, _ in training], domain_count)
        lessons = Lessons(table, list(states.values()), anchor, router, seed=0)

        def tried(row_N: np.ndarray, gates_ND: np.ndarray) -> np.ndarray:
            return score_gates(evaluators, rows, taught[row_N], gates_ND, sweep, lambda *_: None)

        judges, served = teach(lessons, fold_B[taught], np.unique(fold_B).tolist(), tried)

    with costs.phase("judge"):
        found = []
        for shard in read_shards(rows, domains, sweep, area):

            def judged_under(row_N: np.ndarray, gates_ND: np.ndarray, shard=shard) -> np.ndarray:
                return score_gates(evaluators, shard.rows, row_N, gates_ND, sweep, lambda *_: None)

            found.append(judge_shard(judges, shard, prompts, fold_B, states, encode, judged_under))
        judged = Judged.together(found)
        report = routing_report(router, judged, served)

    with costs.phase("write"):
        tables = (shard.table.to_arrow() for shard in read_shards(rows, domains, sweep, area))
        write_outcomes(tables, folder / "outcomes.parquet")
        mask_gains((shard.table.to_arrow() for shard in read_shards(rows, domains, sweep, area)), domains)

    own = report.kinds["domain"]
    return {
        "rows": count,
        "domains": domain_count,
        "outcomes": outcomes,
        "batches": batches,
        "seconds": costs.seconds,
        "cpu": costs.cpu,
        "peak": costs.peak,
        "files": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MEGABYTE,
        "routed less oracle": own.loss["routed"] - own.loss["oracle"],
    }


def table_of(cases: Sequence[dict]) -> Table:
    table = Table(
        "Driver of a sweep and its meta-router, by a formula instead of a model",
        (
            "rows",
            "domains",
            "outcomes a row",
            *(f"{phase}, s" for phase in PHASES),
            "driver CPU a batch, ms",
            "an outcome, µs",
            *(f"{phase}, peak MB" for phase in PHASES),
            "on disk, MB",
        ),
        note="One evaluator on Ray, rows of 24 to 40 tokens in batches of 4,096; "
        f"learned from {LEARNED['learn_rows']} rows, {LEARNED['learn_combinations']} combinations.",
    )
    for found in cases:
        table.rows.append(
            (
                f"{found['rows']:,}",
                found["domains"],
                f"{found['outcomes'] / found['rows']:.1f}",
                *(f"{found['seconds'][phase]:.0f}" for phase in PHASES),
                f"{1e3 * found['cpu']['sweep'] / found['batches']:.2f}",
                f"{1e6 * found['cpu']['sweep'] / found['outcomes']:.1f}",
                *(f"{found['peak'][phase]:.0f}" for phase in PHASES),
                f"{found['files']:.0f}",
            )
        )
    return table


def main() -> None:
    quieten()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 30_000, 100_000])
    parser.add_argument("--domains", nargs="+", type=int, default=[5, 20, 50])
    parser.add_argument("--one", help=argparse.SUPPRESS)  # where a case's own process writes what it found
    arguments = parser.parse_args()
    if arguments.one:
        with local_ray(), tempfile.TemporaryDirectory() as folder:
            found = case(arguments.rows[0], arguments.domains[0], Path(folder))
        Path(arguments.one).write_text(json.dumps(found))
        return
    cases = [_alone(rows, domains) for domains in arguments.domains for rows in arguments.rows]
    print(table_of(cases).markdown())


def _alone(rows: int, domains: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "case.json"
        command = [sys.executable, "-m", "benchmarks.scale", "--rows", str(rows), "--domains", str(domains)]
        subprocess.run([*command, "--one", str(answer)], check=True)
        found = json.loads(answer.read_text())
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
