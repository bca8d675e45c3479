"""Every program of the project says how it is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ("bs_cluster", "jobs", "cluster", "benchmarks")
# A script of ``jobs`` or ``cluster`` is run by its path, a module by its name, a package's ``__main__`` by its.
ASK = """
import contextlib, io, json, runpy, sys
found, programs = {}, sys.argv[1:]
for program in programs:
    sys.argv, code = [program, "--help"], None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            if program.startswith(("jobs/", "cluster/")):
                runpy.run_path(program, run_name="__main__")
            else:
                name = program.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
                runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    found[program] = (code or 0 if code is not None else "did not end", printed.getvalue())
print(json.dumps(found))
"""
MAIN = 'if __name__ == "__main__":'
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in SHIPPED
    for path in (ROOT / folder).rglob("*.py")
    if MAIN in path.read_text()
)


def test_the_programs_are_those_that_people_are_told_of():
    assert {"jobs/outer_loop.py", "jobs/generate.py", "cluster/local.py", "benchmarks/__main__.py"} <= set(PROGRAMS)
    assert "bs_cluster/base/prepare.py" in PROGRAMS


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """What each program prints and exits with; all in one process, since they import the same libraries for seconds."""
    folder = tmp_path_factory.mktemp("empty")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BS_STORE": str(folder)}
    del environment["DS_ACCELERATOR"]  # as a user has none; DeepSpeed says which it found
    done = subprocess.run(
        [sys.executable, "-c", ASK, *PROGRAMS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    assert "accelerator" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_printed_and_nothing_else_is_done(program, helps):
    code, printed = helps[program]
    assert code == 0
    assert printed.startswith("usage: ")
