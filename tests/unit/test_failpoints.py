"""Failpoints: each stands where it is said to, strikes once, and is free where none is asked for."""

import ast
import errno
import os
import signal
import subprocess
import sys
import time
import timeit
from pathlib import Path

import pytest

from bs_cluster import failpoints
from bs_cluster.errors import UsageError
from bs_cluster.failpoints import ARMED, FAILPOINTS, HIT, failpoint

PACKAGE = Path(failpoints.__file__).parent
REACH = "from bs_cluster.failpoints import failpoint\nfor turn in range(1, 4):\n failpoint('store.ref')\n print(turn)"


def reach(folder: Path, asked: str) -> subprocess.CompletedProcess:
    """A process that gets to one failpoint three times."""
    return subprocess.run(
        [sys.executable, "-c", REACH],
        env=os.environ | {ARMED: asked, HIT: str(folder), "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_stands_once_and_where_it_is_said_to():
    found = [
        (call.args[0].value, str(path.relative_to(PACKAGE)))
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "failpoint"
        and isinstance(call.args[0], ast.Constant)
    ]
    assert sorted(found) == sorted(FAILPOINTS.items())


def test_a_kill_strikes_at_its_time_and_in_one_process_only(tmp_path):
    struck, again = reach(tmp_path, "store.ref=kill@2"), reach(tmp_path, "store.ref=kill@2")
    assert struck.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["store.ref=kill@2"]
    assert again.returncode == 0
    assert again.stdout.split() == ["1", "2", "3"]


@pytest.mark.parametrize(("fault", "number"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_a_full_and_a_broken_disk_are_what_python_makes_of_them(tmp_path, fault, number):
    armed = failpoints.parse({ARMED: f"store.ref={fault}", HIT: str(tmp_path)})
    assert armed is not None
    armed.reach("store.rename")
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        armed.reach("store.ref")
    assert raised.value.errno == number
    armed.reach("store.ref")


def test_late_comes_late_and_a_hang_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(failpoints, "LATE_S", 0.2)
    monkeypatch.setattr(failpoints, "HANG_S", 0.4)
    armed = failpoints.parse({ARMED: "store.ref=late, store.link=hang", HIT: str(tmp_path)})
    assert armed is not None
    for place, least_s in (("store.ref", 0.2), ("store.link", 0.4)):
        started = time.monotonic()
        armed.reach(place)
        assert time.monotonic() - started >= least_s


@pytest.mark.parametrize(
    ("asked", "hit", "told"),
    [
        ("store.reff=kill", "/tmp", "there is no failpoint 'store.reff'; there are store.verify, "),
        ("store.ref=explode", "/tmp", "there is no fault 'explode'; there are kill, enospc"),
        ("store.ref", "/tmp", "'store.ref' is not <failpoint>=<fault>"),
        ("store.ref=kill@0", "/tmp", "is not <failpoint>=<fault>"),
        ("store.ref=kill", "marks", f"{HIT} must name a folder, absolute"),
    ],
)
def test_what_is_not_known_is_refused_in_words(monkeypatch, asked, hit, told):
    monkeypatch.setenv(ARMED, asked)
    monkeypatch.setenv(HIT, hit)
    with pytest.raises(UsageError, match=told):
        failpoints.environment()


def test_off_it_is_free():
    """A look at a global name: tens of nanoseconds, where a step of the smallest model takes tens of milliseconds."""
    calls = 100_000
    assert min(timeit.repeat(lambda: failpoint("training.step"), number=calls, repeat=5)) / calls < 1e-6
