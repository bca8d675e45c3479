"""A process that may be struck: forked, so that libraries are imported once for all trials."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bs_cluster import failpoints
from bs_cluster.failpoints import ARMED, HIT

AFTER_HIT_S = 1.5  # how long one that hangs is left to hang
UNEXPECTED = 70


@dataclass(frozen=True)
class End:
    """``how``: done, killed, told (it ended with an error in words), traceback, hung (it was ended by hand after it was
    struck) or stuck (by hand, though nothing had struck it)."""

    how: str
    struck: bool
    seconds: float
    log: str


def run(act: Callable[[], Any], log: Path, asked: str, marks: Path, patience_s: float, ranks: int = 1) -> End:
    """``act`` in ``ranks`` processes; when one of them ends ill, as Ray does, the others are ended too."""
    marks.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    before = set(marks.glob("*=*@*"))
    started = time.monotonic()
    os.environ["CHAOS_MEETING"] = f"{log}.meeting"  # where ranks find each other
    children = {_start(act, rank, log, asked, marks): rank for rank in range(ranks)}
    codes: list[int] = []
    by_hand = ""
    try:
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in children:
                del children[pid]
                codes.append(os.waitstatus_to_exitcode(status))
                if codes[-1] != 0:
                    time.sleep(0.3)
                    _kill(children)
                continue
            struck = next(iter(set(marks.glob("*=hang@*")) - before), None)
            if struck is not None and not by_hand and time.time() - struck.stat().st_mtime > AFTER_HIT_S and not codes:
                by_hand = "hung"
                _kill(children)
            elif time.monotonic() - started > patience_s and not by_hand:
                by_hand = "stuck"
                _kill(children)
            time.sleep(0.01)
    finally:
        _kill(children)  # where this process is itself told to end
    ill = [code for code in codes if code != 0]
    how = by_hand or (
        "done" if not ill else "killed" if ill[0] < 0 else "traceback" if ill[0] == UNEXPECTED else "told"
    )
    struck = set(marks.glob("*=*@*")) > before
    return End(how, struck, time.monotonic() - started, log.read_text(errors="replace"))


def _kill(children: Mapping[int, int]) -> None:
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _start(act: Callable[[], Any], rank: int, log: Path, asked: str, marks: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = UNEXPECTED
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ |= {ARMED: asked, HIT: str(marks), "RANK": str(rank)}
        scratch = marks.with_name("scratch")
        scratch.mkdir(exist_ok=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
        failpoints._armed = failpoints.parse(os.environ)
        code = act()
        told = marks / f"passed-{rank}.json"
        if failpoints._armed is not None and not told.exists():
            told.write_text(json.dumps(failpoints._armed.passed))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
