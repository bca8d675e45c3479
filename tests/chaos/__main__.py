"""``python -m chaos``: the trials that the results do not have yet, then the page."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

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
from tiny_campaign import write_inputs  # noqa: E402

from bs_cluster.registry.database import ensure_database  # noqa: E402
from chaos.arena import Arena  # noqa: E402
from chaos.campaign import Campaigns, Measures  # noqa: E402
from chaos.commit import Commits  # noqa: E402
from chaos.page import page  # noqa: E402
from chaos.processes import Processes  # noqa: E402
from chaos.record import Result, Results  # noqa: E402
from chaos.rounds import Rounds  # noqa: E402
from chaos.trials import KINDS, trials_at, trials_of_processes  # noqa: E402

PAGE = HERE.parents[1] / "docs/CHAOS.md"
SEED = 0
SEEDS = 2
DISTURBED = {"commit": Commits, "round": Rounds, "measure": Measures, "campaign": Campaigns}
DISTURBED_IN_RAY = ("measure", "campaign")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", nargs="+", help="trials of these names, even if they are done; no page is written")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no trial after so many")
    arguments = parser.parse_args()
    results, until = Results(arguments.results), time.monotonic() + 60 * arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    template = write_inputs(folder / "template")
    ensure_database(template / "mlflow.db", print)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its cluster ends with it
    wrong = 0
    with contextlib.ExitStack() as stack:
        for kind in arguments.kinds:
            if kind in DISTURBED_IN_RAY and "RAY_ADDRESS" not in os.environ:
                os.environ["RAY_ADDRESS"] = stack.enter_context(job.cluster(folder / "ray.log"))
            arena = (
                Processes(template, folder / kind)
                if kind == "processes"
                else Arena(DISTURBED[kind], template, folder / kind, anew=kind not in results.passes)
            )
            if isinstance(arena, Arena):
                results.passed(kind, arena.passes)
            trials = (
                trials_at(kind, results.passes[kind], SEED) if isinstance(arena, Arena) else trials_of_processes(SEEDS)
            )
            for trial in trials:
                if trial in results.of if arguments.only is None else trial.name not in arguments.only:
                    continue
                if time.monotonic() > until:
                    break
                result = arena.hold(trial)
                results.add(result)
                show(result)
                wrong += bool(result.wrong)
    planned = [
        trial
        for kind in KINDS
        for trial in (
            trials_at(kind, results.passes.get(kind, {}), SEED) if kind in DISTURBED else trials_of_processes(SEEDS)
        )
    ]
    if arguments.only is None:
        PAGE.write_text(page(results, planned))
    return 1 if wrong else 0


def show(result: Result) -> None:
    struck = "" if result.struck else ", never struck"
    print(f"{result.trial.name:<55} {result.ended}, then {result.again}{struck}  {result.seconds:.1f} s", flush=True)
    for kind, told in result.wrong.items():
        for one in told:
            print(f"    {kind}: {one}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
