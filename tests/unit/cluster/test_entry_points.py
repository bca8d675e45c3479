"""Every program of the project says how it is called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ("bs_cluster", "jobs", "cluster", "benchmarks")
MAIN = 'if __name__ == "__main__":'
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in SHIPPED
    for path in (ROOT / folder).rglob("*.py")
    if MAIN in path.read_text()
)


def command(program: str) -> list[str]:
    """A script of ``jobs`` or ``cluster`` is run by its path, a module by its name, a package's ``__main__`` by its."""
    if program.startswith(("jobs/", "cluster/")):
        return [program]
    return ["-m", program.removesuffix(".py").removesuffix("/__main__").replace("/", ".")]


def test_the_programs_are_those_that_people_are_told_of():
    assert {"jobs/outer_loop.py", "jobs/generate.py", "cluster/local.py", "benchmarks/__main__.py"} <= set(PROGRAMS)
    assert "bs_cluster/training/prewarm.py" in PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_printed_and_nothing_else_is_done(program, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BS_STORE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command(program), "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []
