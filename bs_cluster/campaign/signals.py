"""Being stopped: a signal becomes an exception, so that what was begun is ended in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bs_cluster.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raises Stopped in the main thread on SIGTERM (``ray job stop``, a scheduler) and SIGINT (Ctrl-C). A second one
    is left to the system, so that nothing which hangs can keep the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
