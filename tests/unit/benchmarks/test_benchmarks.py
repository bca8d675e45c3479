"""Every section of the benchmark runs from its command line, on tiny bases, and writes numbers that can be true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_tiny_base
from tiny_bundle import commit_bundle
from tiny_campaign import write_inputs

from benchmarks.__main__ import write_results
from benchmarks.convergence import Curve, steps_to
from benchmarks.table import Table, Target
from bs_cluster.promotion import HAND
from bs_cluster.records import CHAMPION

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def measured(folder: Path) -> dict[str, Table]:
    runs = json.loads((folder / "results.json").read_text())
    return {table["title"]: Table.from_dict(table) for run in runs for table in run["tables"]}


def test_a_bare_gpu_machines_sections_import_without_the_cluster_packages():
    absent = ("ray", "mlflow", "deepspeed", "trl", "datasets", "pyarrow", "pydantic", "matplotlib", "bs_cluster.config")
    sections = ("__main__", "steps", "forward", "memory", "nullspace")
    hide = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))"
    code = f"{hide}; import importlib; [importlib.import_module('benchmarks.' + name) for name in {sections!r}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_near_duplicates_say_how_alike_rows_are_and_what_is_left_out(tmp_path):
    lines = [json.dumps({"prompt": f"What is item {n % 40}?", "completion": f"Number {n % 40}."}) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    out = run("benchmarks.near_duplicates", "--data", f"some={tmp_path / 'rows.jsonl'}", "--held-out", "20")
    assert "300 inverse pairs: 0." in out
    assert " 0 below 0.55;" in out
    assert "the files: 60 rows, 20 held out" in out
    assert "20 left out (some 20)" in out


@pytest.mark.long
def test_what_a_bare_gpu_machine_runs(tmp_path):
    sections = ["steps", "forward", "memory", "nullspace"]
    sizes = ["--rows", "2", "--tokens", "16", "--rounds", "1"]
    run("benchmarks", "--sections", *sections, "--bases", "random:tiny:2", *sizes, "--output", str(tmp_path))
    tables = measured(tmp_path)
    titles = " ".join(tables)
    for wanted in ("Training step", "beside frozen stacks", "Forward", "Generation", "Memory", "basis", "Enforcement"):
        assert wanted in titles
    seconds = [row[1] for title, table in tables.items() if title.startswith("Training step") for row in table.rows]
    assert all(value > 0 for value in seconds)
    kept = {row[0]: row[2] for row in tables["Memory of a training step: random:tiny:2"].rows}
    assert kept["one stack"] < kept["one stack, textbook form"]
    bases = next(table for table in tables.values() if "basis of" in table.title)
    errors = {(width, way.split(" ")[0]): error for width, way, _, _, error in bases.rows}
    assert errors[640, "streamed"] < 1e-3 < errors[640, "randomized"]
    assert "| what |" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.long
@pytest.mark.ray
def test_sweep_and_serving_on_a_real_base(tmp_path):
    base = save_tiny_base(tmp_path / "base", "gemma3")
    sizes = ["--rounds", "1", "--threads", "1"]
    run(
        "benchmarks",
        "--sections",
        "sweep",
        "evaluators",
        "serving",
        "--bases",
        str(base),
        *sizes,
        "--output",
        str(tmp_path),
    )
    tables = measured(tmp_path)
    exhaustive = {row[0]: row[2] for row in tables[f"Sweep, one evaluator: {base}"].rows if row[1] == "exhaustive"}
    assert exhaustive == {3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
    assert all(row[2] < 0.1 for row in tables[f"The same sweep in other batches, D = 3: {base}"].rows)
    greedy = {row[0]: row[1] for row in tables[f"Exhaustive sweep against greedy search, D = 5: {base}"].rows}
    assert greedy["exhaustive, ours"] == 32
    assert all(6 <= count <= 16 for name, count in greedy.items() if name.startswith("greedy"))
    assert {row[0] for row in tables[f"Evaluators on Ray, D = 5: {base}"].rows} == {1, 2}


@pytest.mark.slow
def test_serving_answers_as_many_at_once_as_one_at_a_time(tmp_path):
    bundled = commit_bundle(write_inputs(tmp_path), tmp_path / "store", ("aa", "bb"))
    bundled.store.promote(1, CHAMPION, HAND, "the first")
    sizes = ["--tokens", "4", "--rounds", "1"]
    out = run("benchmarks.serve", "--store", bundled.store.uri, "--campaign", "tiny", *sizes)
    rows = [line.split("|")[1:-1] for line in out.splitlines() if re.match(r"\| \d", line)]
    assert [int(row[0]) for row in rows] == [1, 16]
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row)
    assert re.search(r"\d+ ms in the mean of 16\.", out)


@pytest.mark.slow
def test_the_same_requests_are_answered_by_what_one_would_serve_with_instead(tmp_path):
    base = save_tiny_base(tmp_path / "base", "gemma3")
    sizes = ["--rounds", "1", "--threads", "1", "--tokens", "4"]
    run("benchmarks", "--sections", "rivals", "--bases", str(base), *sizes, "--output", str(tmp_path))
    tables = measured(tmp_path)
    answered = tables[f"16 requests of 5 domains, 4 tokens each: {base}"]
    ways = {(row[0].split(",")[0], row[1]) for row in answered.rows}
    assert ways == {("our engine", 1), ("our engine", 16), ("PEFT", 1), *(("transformers serve", n) for n in (1, 16))}
    assert all(cell > 0 for row in answered.rows for cell in row[2:])
    assert all(row[3] <= row[4] for row in answered.rows)
    assert len(answered.targets) == 4
    changes = {row[0]: row[1] for row in tables[f"From one request's adapter to the next one's: {base}"].rows}
    assert all(ms > 0 for what, ms in changes.items() if "weight of the row" not in what)
    assert {what.split(":")[0] for what in changes} == {"PEFT", "ours"}


@pytest.mark.slow
def test_memory_of_stacks_is_measured_with_and_without_a_budget(tmp_path):
    base = save_tiny_base(tmp_path / "base", "gemma3")
    out = run("benchmarks.residency", "--base", str(base), "--domains", "4", "--room", "2")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if re.match(r"\| \d", line)]
    assert [row[:2] for row in rows] == [["4", "all"], ["4", "2"]]
    everything, scarce = rows
    assert everything[4] == "nan"  # nothing is read once all are there
    assert float(scarce[4].replace(",", "")) > 0


@pytest.mark.slow
def test_convergence_trains_every_method_on_the_same_rows(tmp_path):
    base = save_tiny_base(tmp_path / "base", "gemma3")
    rows = [{"prompt": f"say {word}", "completion": f"{word} {word} {word}"} for word in map(chr, range(97, 123))] * 4
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    short = ["--steps", "10", "--seeds", "0", "--max-length", "48", "--threads", "1"]
    run("benchmarks.convergence", "--data", f"say={data}", "--base", str(base), *short, "--output", str(tmp_path))
    curves = json.loads((tmp_path / "convergence.json").read_text())["curves"]
    assert len({curve["loss"][0] for curve in curves}) == 1  # the untrained adapter changes nothing
    assert all(curve["loss"][-1] < curve["loss"][0] for curve in curves)
    assert {curve["method"] for curve in curves} == {"LoRA r=64", "LoRA r=256", "stack", "stack, no noise, sharper"}


def test_a_target_that_is_missed_says_so():
    targets = [Target("fast", 1.2, 1.0), Target("more", 9.0, 8.0, True), Target("near", 0.0034, 0.01)]
    table = Table("t", ("a", "b"), [("x", 0.5)], targets=targets)
    text = table.markdown()
    assert "✗ fast: **1.20** (wanted ≤ 1.00)" in text
    assert "✓ more: **9.00** (wanted ≥ 8.00)" in text
    assert "✓ near: **0.0034** (wanted ≤ 0.01)" in text
    assert Table.from_dict(json.loads(json.dumps(table.to_dict()))).markdown() == text


def test_measuring_a_table_anew_replaces_it_and_keeps_the_others(tmp_path):
    def told(*titles: str) -> list[Table]:
        return [Table(title, ("what",), [(title,)]) for title in titles]

    def titles() -> list[list[str]]:
        runs = json.loads((tmp_path / "results.json").read_text())
        return [[table["title"] for table in run["tables"]] for run in runs]

    write_results(tmp_path, [], told("steps", "memory"), 60.0)
    for anew, left in ((["memory"], [["steps"], ["memory"]]), (["steps", "memory"], [["steps", "memory"]])):
        earlier = json.loads((tmp_path / "results.json").read_text())
        write_results(tmp_path, earlier, told(*anew), 60.0)
        assert titles() == left


def test_steps_to_a_loss_are_interpolated():
    curve = Curve("m", "d", 0, 1, [0, 10, 20, 30], [2.0, 1.5, 1.0, 1.2])
    assert steps_to(curve, 1.25) == 15
    assert steps_to(curve, 1.5) == 10
    assert steps_to(curve, 0.9) is None
