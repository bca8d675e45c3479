"""What a campaign hands over for its report: measured numbers, in the units they were measured in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from bs_cluster.certificate import Isolated
from bs_cluster.promotion import Decision, ServedChange
from bs_cluster.records import BaseRef, BeforeAfter, DomainRecord, JudgedAnswer, ModeLosses
from bs_cluster.report.record import SweepReport

OUTCOME_COLUMNS = ("row_id", "domain", "mask", "nll", "tokens")

# A stack's training by step: {step, loss, selection_loss, load_balance, ...}, any but ``step`` may be absent.
History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class RouterFacts:
    """What only the meta-router's own judge knows. ``accuracy``: share of rows that its gates served as well as
    the best combination; ``best_single``: the domain behind that mode; ``notes``: sentences on what is served."""

    accuracy: float | None = None
    best_single: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportInputs:
    """Everything the report is computed from.

    ``domains`` is curriculum order; a domain without a record has not closed. ``histories`` is by stack name
    (``chat_r1``). ``losses`` are those of the sweep rows, row by row; ``rows_note`` says which rows they are.

    ``isolated_row_losses`` is every domain's loss per validation row now, with only its own stacks: the same rows
    in the same order as ``DomainRecord.row_losses``, so that the difference is drift. ``proofs`` hold
    digests of isolated logits at closing and now. ``overlap`` is the mean
    squared cosine between two domains' claimed directions, averaged over sites; empty with the null space off.
    ``gates`` maps a row's owner to the mean gate weight served to each domain.

    ``served`` compares what is served now with the champion; None where there is none. ``decision`` says what became
    of the bundle, and why.

    ``answers`` are of sweep rows, a line per row and mode, each row under all that have a meaning for it; ``unasked``
    counts rows by owner and by why they were not asked; an answer had ``answer_tokens`` tokens at most.

    ``outcomes`` are tables, to be read more than once, with a line per sweep row and combination (``OUTCOME_COLUMNS``),
    whole rows in each: bit d of ``mask`` says that ``domains[d]`` fires, ``nll`` is the row's loss summed over its
    ``tokens`` completion tokens.
    """

    campaign: str
    config_yaml: str
    base: BaseRef
    domains: tuple[str, ...]
    records: tuple[DomainRecord, ...]
    losses: ModeLosses
    rows_note: str
    isolated_row_losses: Mapping[str, tuple[float, ...]]
    proofs: tuple[Isolated, ...] = ()
    histories: Mapping[str, History] = field(default_factory=dict)
    aligned_answers: Mapping[str, Sequence[BeforeAfter]] = field(default_factory=dict)
    overlap: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    router: RouterFacts = field(default_factory=RouterFacts)
    gates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    served: ServedChange | None = None
    decision: Decision | None = None
    answers: tuple[JudgedAnswer, ...] = ()
    unasked: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    answer_tokens: int = 0
    outcomes: Iterable[pa.Table] = ()
    sweep: SweepReport = field(default_factory=SweepReport)
    timing: Mapping[str, float] = field(default_factory=dict)
    data_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        strangers = {record.domain for record in self.records} - set(self.domains)
        assert not strangers, f"records of {sorted(strangers)}, which are not among the domains {self.domains}"

    @property
    def owners(self) -> tuple[str, ...]:
        """The domains, then the kinds of rows that no domain owns, in the order they first occur."""
        return tuple(dict.fromkeys((*self.domains, *self.losses.owners)))

    def record(self, domain: str) -> DomainRecord | None:
        return next((record for record in self.records if record.domain == domain), None)
