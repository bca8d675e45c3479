"""A watched process ends where it stands still, and nowhere else."""

import subprocess
import sys
import time

import pytest

from bs_cluster.watchdog import EXIT_CODE, TELL_S, pulse, watched

SLEEPER = """
import time
from functools import partial
from bs_cluster.watchdog import pulse, watched
def sleeps(seconds, turns=1):
    for _ in range(turns):
        pulse()
        time.sleep(seconds)
with watched("rank 1", 1.0, "some.setting", partial(print, flush=True)):
    sleeps(*{})
sleeps(*{})
print("went on")
"""


def asleep(within, after=(0,)):
    code = SLEEPER.format(within, after)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_what_stands_still_is_ended_by_name_with_its_stacks():
    started = time.monotonic()
    done = asleep((40,))
    assert time.monotonic() - started < 30
    assert done.returncode == EXIT_CODE
    told = "rank 1 stood still for 1 s (some.setting) in sleeps (<string>:8): it ends, work begins anew"
    assert done.stdout == told + "\n"
    assert "in sleeps" in done.stderr


def test_it_ends_late_enough_for_whatever_waits_for_it_to_be_named_too():
    """Two workers of a group stand still together, and whichever ends first ends the other."""
    started = time.monotonic()
    asleep((40,))
    assert time.monotonic() - started > 1 + TELL_S


def test_what_goes_on_is_left_alone_however_long_it_takes():
    done = asleep((0.1, 14), after=(1.4,))
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_what_is_watched_already_is_not_watched_again():
    again = pytest.raises(AssertionError, match="watched already")
    with watched("one", 60, "a", print), again, watched("two", 60, "b", print):
        pass
    pulse()  # nothing watches any more
