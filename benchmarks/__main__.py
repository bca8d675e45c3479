"""``python -m benchmarks``: measures, prints and writes the tables; each section and base in a process of its own.

On a bare GPU machine (torch, transformers, peft, bitsandbytes, safetensors):

    python -m benchmarks --device cuda --sections steps forward memory nullspace --bases random:gemma3-12b:4
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.settings import Settings
from benchmarks.table import Table
from bs_cluster.quiet import KEEP_FREED_MEMORY, quieten

SECTIONS = ("steps", "forward", "memory", "nullspace", "head", "sweep", "evaluators", "serving", "rivals")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "ray")
DEFAULT_BASES = {"cpu": ["embedded:gemma3-270m"], "cuda": ["random:gemma3-12b:4"]}


def main() -> None:
    arguments = _arguments()
    if arguments.one:
        _measure_one(json.loads(arguments.one))
        return
    tables: list[Table] = []
    failed: list[str] = []
    started = time.time()
    results = arguments.output / "results.json" if arguments.output else None
    earlier = json.loads(results.read_text()) if results and arguments.append and results.exists() else []
    for base in arguments.bases or DEFAULT_BASES[arguments.device]:
        for section in arguments.sections:
            settings = Settings(
                base, arguments.device, arguments.threads, arguments.rows, arguments.tokens, arguments.rounds
            )
            try:
                measured = _measure(section, settings)
            except subprocess.CalledProcessError as error:
                failed.append(f"{section} on {base} ended with exit code {error.returncode}")
                continue
            for table in measured:
                print(table.markdown(), flush=True)
                tables.append(table)
            if arguments.output:  # after each section: a later one may fail
                write_results(arguments.output, earlier, tables, time.time() - started)
    if failed:
        sys.exit("not measured: " + "; ".join(failed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--bases", nargs="+", help="embedded:…, a folder, a Hub name or random:<shape>:<layers>")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; as found by torch if 0")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5, help="measured turns of every case")
    parser.add_argument("--output", type=Path, help="folder for RESULTS.md and results.json; printed only if not given")
    parser.add_argument(
        "--append", action="store_true", help="keep the results in that folder, but for tables measured anew"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a section's own process is told
    return parser.parse_args()


def _measure(section: str, settings: Settings) -> list[Table]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "tables.json"
        told = json.dumps({"section": section, "settings": asdict(settings), "answer": str(answer)})
        environment = {**os.environ, **KEEP_FREED_MEMORY}  # as the campaign's own processes have it
        subprocess.run([sys.executable, "-m", "benchmarks", "--one", told], check=True, env=environment)
        return [Table.from_dict(data) for data in json.loads(answer.read_text())]


def _measure_one(told: dict) -> None:
    quieten()
    settings = Settings(**told["settings"])
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # By name: some sections want the whole package, which a bare GPU machine lacks.
    tables = importlib.import_module(f"benchmarks.{told['section']}").measure(settings)
    Path(told["answer"]).write_text(json.dumps([table.to_dict() for table in tables]))


def write_results(folder: Path, earlier: list[dict[str, Any]], tables: list[Table], seconds: float) -> None:
    run = {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "minutes": round(seconds / 60, 1),
        "machine": machine_name(),
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "tables": [table.to_dict() for table in tables],
    }
    folder.mkdir(parents=True, exist_ok=True)
    anew = {table.title for table in tables}
    kept = [old | {"tables": [table for table in old["tables"] if table["title"] not in anew]} for old in earlier]
    runs = [*(old for old in kept if old["tables"]), run]
    (folder / "results.json").write_text(json.dumps(runs, indent=1, ensure_ascii=False) + "\n")
    (folder / "RESULTS.md").write_text("\n".join(["# Benchmark results\n", *map(_run_markdown, runs)]))


def _run_markdown(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    lines = [
        f"`{run['command']}`, {run['date']}, {run['minutes']} minutes, on {run['machine']}; "
        f"Python {run['python']}, {versions}.",
        "",
        "The cases of a table took turns in one process and figures are medians: compare ratios, not seconds.",
        "",
    ]
    return "\n".join([*lines, *(Table.from_dict(table).markdown() for table in run["tables"])])


def machine_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, no GPU"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
