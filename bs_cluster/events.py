"""What workers say while they work and people read: frozen records, from worker through coordinator to driver.

Nothing is decided by an event; losing one loses a line on a screen. Losses are nats per completion token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bs_cluster.records import Record, RoundOutcome, StackId


@dataclass(frozen=True)
class Phase(Record):
    """Something long begins, in words."""

    text: str


@dataclass(frozen=True)
class RoundStarted(Record):
    """A stack begins to learn, for at most ``steps`` optimizer steps."""

    stack: StackId
    steps: int


@dataclass(frozen=True)
class RoundResumed(Record):
    """A round goes on after ``step``, where its last checkpoint was written."""

    stack: StackId
    step: int


@dataclass(frozen=True)
class CheckpointTrouble(Record):
    """A checkpoint was not taken, or could not be written, and ``why``. The round goes on without it."""

    stack: StackId
    step: int
    why: str


@dataclass(frozen=True)
class NodeLeaves(Record):
    """The platform takes a node of these ``ranks`` in ``seconds`` (None: it does not say when). A checkpoint is written
    after ``step``, and others soon after each other."""

    stack: StackId
    step: int
    ranks: tuple[int, ...]
    seconds: float | None


@dataclass(frozen=True)
class StepDone(Record):
    """An optimizer step is judged. ``step`` counts from 1; ``seconds`` since the round's first. ``verdict`` is the
    guard's (``go on``, ``restore``, ``stop``); ``selection_loss``, on the rows that select a snapshot, is there
    where it was measured. ``watched`` is what the objective saw besides, ``diverged`` why it ends the round."""

    stack: StackId
    step: int
    steps: int
    seconds: float
    verdict: str
    loss: float
    load_balance: float
    imbalance: float
    grad_norm: float
    learning_rate: float
    selection_loss: float | None = None
    watched: dict[str, float] = field(default_factory=dict)
    diverged: str | None = None


@dataclass(frozen=True)
class RoundEnded(Record):
    """A round was committed or rejected."""

    outcome: RoundOutcome


@dataclass(frozen=True)
class Measuring(Record):
    """A closing domain's stacks are being measured: ``batch`` of ``batches`` of the tokens that ``what`` takes."""

    domain: str
    what: str
    batch: int
    batches: int


@dataclass(frozen=True)
class RoomScarce(Record):
    """Earlier domains leave a new one only this share of the ``width`` directions that ``site`` reads or writes, by
    ``side`` (``input``, ``output``); no site has less."""

    site: str
    side: str
    width: int
    free: float


@dataclass(frozen=True)
class DomainClosed(Record):
    """A domain closed: its loss with its own stacks alone, and the base's, on the same rows."""

    domain: str
    isolated: float
    base: float


@dataclass(frozen=True)
class BundleReady(Record):
    """The campaign is complete: bundle ``number`` became ``alias`` (``champion``, ``challenger``) for this ``reason``.
    ``metrics`` are those by which bundles are compared."""

    number: int
    alias: str
    reason: str
    metrics: Mapping[str, float]


Event = (
    Phase
    | RoundStarted
    | RoundResumed
    | CheckpointTrouble
    | NodeLeaves
    | StepDone
    | RoundEnded
    | Measuring
    | RoomScarce
    | DomainClosed
    | BundleReady
)


@dataclass(frozen=True)
class Place:
    """How far a watcher has read: the first ``number`` events of the coordinator process that calls itself ``epoch``.
    No clock has a part in it."""

    epoch: str = ""
    number: int = 0


@dataclass(frozen=True)
class Told:
    """An event as the coordinator keeps it. ``place`` is where a watcher stands who has seen it."""

    place: Place
    event: Event
