"""What a process without a terminal writes is plain text: a job's log is read by editors, grep and browsers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# Everything a campaign's job prints: events, then the report, as jobs/outer_loop.py does it.
SPEAKS = """
import sys
sys.path.insert(0, "tests")
from bs_cluster.quiet import quieten
quieten()
from unit.report.campaign import make_inputs
from bs_cluster.campaign.console import Console
from bs_cluster.events import DomainClosed, Phase
from bs_cluster.report.build import build_report
from bs_cluster.report.terminal import render_terminal, terminal_console
console = Console()
console.show(Phase("2 workers load the base"))
console.show(DomainClosed("chat", 2.0, 3.0))
terminal_console().print(render_terminal(build_report(make_inputs())))
"""


def spoken(code: str, **environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "xterm-256color"}])
def test_without_a_terminal_nothing_of_ours_holds_an_escape_code(environment):
    text = spoken(SPEAKS, **environment)
    assert "2 workers load the base" in text
    assert "rows that decide" in text
    assert "\x1b" not in text


def test_a_submitted_job_is_told_so():
    text = spoken("import sys; sys.path.insert(0, 'cluster'); import local; print(local.job_environment())")
    assert "'NO_COLOR': '1'" in text


def test_a_job_and_the_processes_it_starts_are_told_different_things():
    """Ray refuses a variable that the job's runtime environment and ``ray.init``'s both set."""
    told = spoken(
        "import sys; sys.path[:0] = ['cluster', 'tests']; import local\n"
        "from bs_cluster.campaign.connect import process_environment\n"
        "from bs_cluster.config.parse import load_config\n"
        "config = load_config('jobs/configs/embedded.yaml', [])\n"
        "print(sorted({**local.job_environment(), 'COLUMNS': '80'}.keys() & process_environment(config).keys()))"
    )
    assert told == "[]\n"
