"""Every error a user can meet, in one tree. Each also inherits the standard type that fits, so that
``except ValueError`` and ``except FileNotFoundError`` keep meaning what they say.

A message names the thing, the value and the way out.
"""

import errno
from signal import Signals

_WAYS_OUT = {
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.ENOSPC: "make room on the volume, then run the same command again",
    errno.EDQUOT: "make room on the volume, then run the same command again",
    errno.EROFS: "mount the volume for writing, or name another store.uri",
    errno.ENOTDIR: "a file stands where a folder belongs: move it away",
    errno.EISDIR: "a folder stands where a file belongs: move it away",
}
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def way_out(error: OSError) -> str:
    """What to do about an error of the operating system."""
    return _WAYS_OUT.get(error.errno or 0, "look after the volume, then run the same command again")


class BrainstacksError(Exception):
    """Root of all errors raised on purpose by this project."""


class ConfigError(BrainstacksError, ValueError):
    """One or more settings are wrong. ``problems`` holds every one of them, a line each."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{head} in the configuration:\n" + "\n".join(f"  - {problem}" for problem in problems))

    def __reduce__(self):
        return type(self), (self.problems,)


class UsageError(BrainstacksError, ValueError):
    """A command line names what is not there, or asks for what makes no sense."""


class DataError(BrainstacksError, ValueError):
    """A data source is missing, empty, malformed or too small for the splits asked of it."""


class BaseModelError(BrainstacksError, ValueError):
    """The base model cannot be found, verified or loaded as asked."""


class StackError(BrainstacksError, ValueError):
    """A stack does not fit its base: no site matched, shapes differ, keys are missing."""


class StoreError(BrainstacksError, RuntimeError):
    """The store refused an operation."""


class IntegrityError(StoreError):
    """Stored bytes are not what their digest says, or a stack's tensors are not finite or not complete."""


class RefExistsError(StoreError, FileExistsError):
    """A ref is created once; it already exists with another content."""


class NotInStoreError(StoreError, FileNotFoundError):
    """A blob or ref was asked for that the store does not hold."""


class DiskError(BrainstacksError, OSError):
    """A volume outside of the store is full or broken: that of the report, of temporary files."""

    @classmethod
    def of(cls, error: OSError) -> "DiskError | None":
        """What ``error`` tells of a disk; None where it tells of something else."""
        if error.errno not in _OF_THE_DISK:
            return None
        where = error.filename or "a file outside of the store"
        return cls(f"{where} cannot be read or written ({error.strerror}); {way_out(error)}")


class OutOfOrderError(BrainstacksError, RuntimeError):
    """Work was offered that is not the curriculum's next step."""


class FencedError(BrainstacksError, RuntimeError):
    """A worker group that has been replaced tried to commit."""


class TrainingError(BrainstacksError, RuntimeError):
    """Training ended, and not by its own decision: no finite snapshot, no trainable parameter, workers that died."""


class ClusterResourceError(BrainstacksError, RuntimeError):
    """The cluster cannot hold what the campaign asks for."""


class Stopped(BrainstacksError):
    """Somebody asked the campaign to stop. ``number`` is the signal's."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(f"stopped by {Signals(number).name}; run the same command to go on")

    def __reduce__(self):
        return type(self), (self.number,)


class RegistryError(BrainstacksError, RuntimeError):
    """MLflow answered with something that cannot be mended by trying again."""


class HubError(BrainstacksError, RuntimeError):
    """The Hugging Face Hub is away, or did not take what was to be uploaded."""


class RegistryUnavailable(RegistryError):
    """MLflow is away or overloaded. Nothing is lost: training goes on, and the next sync drains."""
