"""Named places where a process can be made to fail, so that a test may choose what hits it where.

    BS_FAILPOINTS=store.rename=kill@2,registry.alias=late    the second time that a process gets there; the first time
    BS_FAILPOINTS_HIT=/a/folder                              where each leaves a file when it strikes: it strikes once

The folder is shared by all processes of a campaign: of several that get to a place, one is struck, and the same command
run again goes through. Ray's workers get both variables from their driver. Off, which is always but in such a test, a
failpoint costs a look at one global name.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from bs_cluster.errors import UsageError

ARMED, HIT = "BS_FAILPOINTS", "BS_FAILPOINTS_HIT"
LATE_S = 3.0
HANG_S = 24 * 3600.0

# What each stands before, by the file it stands in.
FAILPOINTS: Mapping[str, str] = {
    "store.verify": "store/store.py",  # a staged stack is checked
    "store.stage": "store/filesystem.py",  # a temporary file is opened
    "store.write": "store/filesystem.py",  # it has all bytes, in the process's own buffer
    "store.fsync": "store/filesystem.py",  # they go to the disk
    "store.rename": "store/filesystem.py",  # a file takes the name of what it replaces
    "store.link": "store/filesystem.py",  # a file takes a name that was absent
    "store.folder": "store/filesystem.py",  # a folder's names go to the disk
    "store.ref": "store/commits.py",  # a ref appears: the commit
    "store.history": "store/commits.py",  # its entry in the history is written
    "coordinator.basis": "coordinator/coordinator.py",  # the directions to keep clear of are handed out
    "coordinator.commit": "coordinator/coordinator.py",  # a stack is published
    "coordinator.acknowledge": "coordinator/coordinator.py",  # its worker is told
    "coordinator.close": "coordinator/coordinator.py",  # a domain's record is written
    "training.step": "training/loop.py",  # an optimizer step begins
    "training.all_reduce": "training/loop.py",  # what a step is judged by is summed over ranks
    "training.snapshot": "training/state.py",  # the best weights so far are kept
    "training.checkpoint": "training/checkpoint.py",  # the state of a round that is under way is written
    "training.fold": "training/round.py",  # a learned stack is frozen
    "training.stage": "training/round.py",  # its files are written
    "training.acknowledge": "training/worker.py",  # a worker goes on after its commit
    "training.basis": "training/closing.py",  # a domain's directions are claimed
    "registry.create_run": "registry/runs.py",
    "registry.metrics": "registry/runs.py",
    "registry.mirror": "registry/mirror.py",  # a domain's model is written to a folder
    "registry.create_model": "registry/versions.py",
    "registry.upload": "registry/versions.py",
    "registry.finalize": "registry/versions.py",
    "registry.register": "registry/versions.py",  # a version is created
    "registry.tag": "registry/versions.py",
    "registry.alias": "registry/versions.py",
    "sweep.dispatch": "sweep/pool.py",  # a batch is sent to an evaluator
    "sweep.score": "inference/evaluator.py",
    "sweep.parquet": "store/sweep_area.py",  # outcomes are written
    "router.encode": "inference/evaluator.py",
    "router.fit": "router/fit.py",
    "router.save": "router/files.py",
    "report.write": "report/write.py",  # a report's files take their names
    "bundle.commit": "campaign/bundle.py",
    "bundle.promote": "campaign/promote.py",
}
FAULTS = ("kill", "enospc", "eio", "hang", "late")
_ONE = re.compile(r"([a-z_.]+)=([a-z]+)(?:@([1-9]\d*))?")


@dataclass(frozen=True)
class Fault:
    """What a process is to meet the ``at``-th time (from 1) that it gets to ``place``."""

    place: str
    what: str
    at: int = 1

    def __str__(self) -> str:
        return f"{self.place}={self.what}@{self.at}"


@dataclass
class _Armed:
    faults: tuple[Fault, ...]
    folder: Path
    passed: dict[str, int] = field(default_factory=dict)

    def reach(self, place: str) -> None:
        self.passed[place] = self.passed.get(place, 0) + 1
        for fault in self.faults:
            if (fault.place, fault.at) == (place, self.passed[place]) and self._is_first(fault):
                _meet(fault)

    def _is_first(self, fault: Fault) -> bool:
        try:
            with (self.folder / str(fault)).open("x") as mark:
                mark.write(f"{os.getpid()} {time.time()}\n")
                mark.flush()
                os.fsync(mark.fileno())
        except FileExistsError:
            return False
        return True


def failpoint(place: str) -> None:
    """Fails here, if this is what was asked for. Raises OSError then, or does not return, or late."""
    if _armed is not None:
        _armed.reach(place)


def environment() -> dict[str, str]:
    """The variables that make other processes fail where this one would; none, mostly. Raises UsageError."""
    parse(os.environ)
    return {name: os.environ[name] for name in (ARMED, HIT) if name in os.environ}


def parse(variables: Mapping[str, str]) -> _Armed | None:
    """What ``variables`` ask for; None for nothing. Raises UsageError for what no failpoint or fault is called."""
    asked = variables.get(ARMED)
    if not asked:
        return None
    faults = tuple(_fault(one.strip()) for one in asked.split(","))
    if not Path(variables.get(HIT, "")).is_absolute():
        raise UsageError(f"{ARMED} is set: {HIT} must name a folder, absolute, where what struck is marked")
    return _Armed(faults, Path(variables[HIT]))


def _fault(text: str) -> Fault:
    match = _ONE.fullmatch(text)
    if match is None:
        raise UsageError(f"{ARMED}: {text!r} is not <failpoint>=<fault> or <failpoint>=<fault>@<which time, from 1>")
    if match[1] not in FAILPOINTS:
        raise UsageError(f"{ARMED}: there is no failpoint {match[1]!r}; there are {', '.join(FAILPOINTS)}")
    if match[2] not in FAULTS:
        raise UsageError(f"{ARMED}: there is no fault {match[2]!r}; there are {', '.join(FAULTS)}")
    return Fault(match[1], match[2], int(match[3] or 1))


def _meet(fault: Fault) -> None:
    match fault.what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "enospc":
            _raise(errno.ENOSPC)
        case "eio":
            _raise(errno.EIO)
        case "hang":
            time.sleep(HANG_S)
        case "late":
            time.sleep(LATE_S)


def _raise(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _arm() -> _Armed | None:
    try:
        return parse(os.environ)
    except UsageError:  # ``environment`` says so, before anything is connected to
        return None


_armed = _arm()
