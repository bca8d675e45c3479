"""``python -m chaos``: the trials that the results do not have yet, then the page."""

from __future__ import annotations

import argparse
import contextlib
import os
import pkgutil
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.pop("RAY_ADDRESS", None)  # never a user's cluster
os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

import job  # noqa: E402
from tiny_alignment import write_pairs  # noqa: E402
from tiny_campaign import write_inputs  # noqa: E402

from bs_cluster.registry.database import ensure_database  # noqa: E402
from chaos.arena import Arena  # noqa: E402
from chaos.page import page  # noqa: E402
from chaos.record import Result, Results  # noqa: E402
from chaos.trials import KINDS, TIMES, Trial, trials_at, trials_of_processes  # noqa: E402

PAGE = HERE.parents[1] / "docs/CHAOS.md"
SEED = 0
SEEDS_OF_PROCESSES = 2
# Imported where they are wanted: some take Ray and DeepSpeed along.
DISTURBED = {
    "commit": "chaos.commit:Commits",
    "round": "chaos.rounds:Rounds",
    "aligned": "chaos.rounds:AlignedRounds",
    "measure": "chaos.campaign:Measures",
    "campaign": "chaos.campaign:Campaigns",
}
IN_RAY = ("measure", "campaign")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", nargs="+", help="trials of these names, even if they are done; no page is written")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no trial after so many")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a cluster of ours ends with us
    results, until = Results(arguments.results), time.monotonic() + 60 * arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    template = write_pairs(write_inputs(folder / "template"))
    ensure_database(template / "mlflow.db", print)
    wrong = 0
    with contextlib.ExitStack() as stack:
        for kind in arguments.kinds:
            if kind in results.passes and not wanted(kind, results, arguments.only):
                continue
            if kind in IN_RAY and os.environ.get("RAY_ADDRESS") is None:
                os.environ["RAY_ADDRESS"] = stack.enter_context(job.cluster(folder / "ray.log"))
            arena = arena_of(kind, template, folder / kind, results)
            for trial in wanted(kind, results, arguments.only):
                if time.monotonic() > until:
                    break
                result = arena.hold(trial)
                results.add(result)
                show(result)
                wrong += bool(result.wrong)
    if arguments.only is None:
        PAGE.write_text(page(results, [trial for kind in KINDS for trial in planned(kind, results)]))
    if wrong:
        print(f"what was left of {wrong} is in {folder}", flush=True)
    else:
        shutil.rmtree(folder)
    return 1 if wrong else 0


def planned(kind: str, results: Results) -> list[Trial]:
    """Every trial of a kind; none before its first control has said what there is to strike."""
    if kind not in TIMES:
        return trials_of_processes(SEEDS_OF_PROCESSES)
    return trials_at(kind, results.passes[kind], SEED) if kind in results.passes else []


def wanted(kind: str, results: Results, only: list[str] | None) -> list[Trial]:
    """Those of a kind that are to be held now."""
    every = planned(kind, results)
    return [trial for trial in every if (trial.name in only if only is not None else trial not in results.of)]


def arena_of(kind: str, template: Path, folder: Path, results: Results) -> Any:
    if kind not in DISTURBED:
        return pkgutil.resolve_name("chaos.processes:Processes")(template, folder)
    campaign = pkgutil.resolve_name(DISTURBED[kind])
    arena = Arena(campaign, template, folder, anew=kind not in results.passes)
    results.passed(kind, arena.passes)
    return arena


def show(result: Result) -> None:
    struck = "" if result.struck else ", never struck"
    print(f"{result.trial.name:<55} {result.ended}, then {result.again}{struck}  {result.seconds:.1f} s", flush=True)
    for kind, told in result.wrong.items():
        for one in told:
            print(f"    {kind}: {one}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
