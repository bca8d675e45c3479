"""Ends a process that stands still, with its name and its stacks, so that something else begins its work anew."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_CODE = 70  # EX_SOFTWARE
# For words to get out of a process in which something hangs, and out of those that wait for it: they stand still too, a
# moment later or earlier, and the first to end takes the others with it.
TELL_S = 5.0
HERE = Path(__file__).parent

Tell = Callable[[str], None]


class _Watch:
    """A thread of its own, so that it sees what the watched one does not come back from; while native code holds the
    interpreter's lock, it sees nothing."""

    def __init__(self, who: str, limit_s: float, setting: str, tell: Tell):
        self.who, self.limit_s, self.setting, self.tell = who, limit_s, setting, tell
        self.watched = threading.get_ident()
        self.alive_at = time.monotonic()
        self.ended = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        while not self.ended.wait(max(0.0, self.alive_at + self.limit_s - time.monotonic())):
            if time.monotonic() >= self.alive_at + self.limit_s:
                self._end()

    def _end(self) -> None:
        try:
            still = f"{self.who} stood still for {self.limit_s:g} s ({self.setting}) in {_where(self.watched)}"
            telling = threading.Thread(target=self.tell, args=(f"{still}: it ends, work begins anew",), daemon=True)
            telling.start()
            print(f"{still}. Its threads:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            time.sleep(TELL_S)
        finally:
            os._exit(EXIT_CODE)  # an exception would wait for the thread that hangs


def _where(thread: int) -> str:
    """The innermost line of ours in a thread, and what that waits for."""
    stack = traceback.extract_stack(sys._current_frames()[thread])
    ours = [frame for frame in stack if Path(frame.filename).is_relative_to(HERE)]
    named = [frame for frame in stack if frame in (*ours[-1:], stack[-1])]
    return ", ".join(f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in named)


_watch: _Watch | None = None


def pulse() -> None:
    """Work goes on: the time to stand still counts from now. Where nothing watches, a look at one global name."""
    if _watch is not None:
        _watch.alive_at = time.monotonic()


@contextmanager
def watched(who: str, limit_s: float, setting: str, tell: Tell) -> Iterator[None]:
    """Ends this process where more than ``limit_s`` seconds go by within it without a ``pulse``. ``tell`` gets a line
    about it first; the stacks of all threads go to standard error. ``setting`` names what to change where it is too
    little."""
    global _watch  # one a process: what it ends is the process
    assert _watch is None, "this process is watched already"
    _watch = watch = _Watch(who, limit_s, setting, tell)
    try:
        yield
    finally:
        _watch = None
        watch.ended.set()
