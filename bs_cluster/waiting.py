"""Waiting for what other processes give, with an end and with words: nothing here waits in silence or for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from bs_cluster.errors import BrainstacksError, ClusterResourceError
from bs_cluster.watchdog import pulse

SAY_EVERY_S = 30.0
ASK_AGAIN_AFTER_S = 1.0

# A source may be a long download. One that fails is told by the driver at once.
ROWS_PATIENCE_S = 24 * 3600.0
ROWS_REMEDY = "see in the log what the encoding task does"

Say = Callable[[str], None]


def say(text: str) -> None:
    """Into this process's own log."""
    print(text, flush=True)


def wait_for(ask: Callable[[], ray.ObjectRef], what: str, patience_s: float, remedy: str, say: Say = say) -> Any:
    """The value of ``ask()``, waited for up to ``patience_s`` seconds, with a line every thirty.

    ``what`` names it in words, ``remedy`` what to do where it does not come. A process that is away for a moment is
    asked again. Raises the other side's own error where that is one of ours, and ClusterResourceError where no answer
    comes: no error of Ray's own waiting gets out.
    """
    started = time.monotonic()
    reference = ask()
    while True:
        pulse()  # this has an end of its own
        waited = time.monotonic() - started
        try:
            return ray.get(reference, timeout=max(0.0, min(SAY_EVERY_S, patience_s - waited)))
        except GetTimeoutError:
            why = "no answer yet: the machine is busy, or what was asked takes long"
        except ActorUnavailableError:
            why = "out of reach for now"
            time.sleep(ASK_AGAIN_AFTER_S)
            reference = ask()
        except RayActorError as error:
            raise ClusterResourceError(
                f"the process that was asked for {what} has ended; run the same command to go on ({_line(error)})"
            ) from error
        except RayTaskError as error:
            if isinstance(error.cause, BrainstacksError):
                raise error.cause from None
            raise
        waited = time.monotonic() - started
        if waited >= patience_s:
            raise ClusterResourceError(
                f"waited {waited:.0f} s for {what}: {why}; {remedy}, then run the same command again"
            )
        say(f"waiting for {what}, {waited:.0f} of {patience_s:g} s ({why})")


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
