"""The report as a record: what ``report.json`` holds and what page, terminal, figures and MLflow read.

Every number is finite; one that was not measured, or came out as NaN or infinite, is None. Losses are nats per
completion token, ``Σ nll / Σ tokens`` over the rows named beside them; differences are paired by row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from bs_cluster.estimates import Estimate, Share
from bs_cluster.promotion import FOREIGN, MIXED
from bs_cluster.records import BaseRef, BeforeAfter, Record, Spread, canonical_json

# Rows of several owners together, in tables by owner: those of all domains; MIXED, of no single one; FOREIGN, of none.
# No domain can have such a name: names hold no spaces.
ALL = "all domains"
EVERY = "all rows asked"  # whose ever they are

# How answers in words are given. Label is isolated; the oracle is the best combination by loss, not by answer.
ANSWER_MODES = ("base", "isolated", "ungated", "routed", "oracle")

# What another policy loses against the best combination in hindsight, by the mode that measures it.
POLICIES = {
    "routed": "meta-router",
    "anchor": "classifier alone",
    "label": "by label",
    "best_single": "best single domain",
    "ungated": "all domains on",
    "base": "base alone",
}

Answer = Literal["holds", "fails", "undecided", "not measured"]


@dataclass(frozen=True)
class Comparison(Record):
    """One paired difference of a finding. ``name`` says of what (a domain, a round), or is empty for the only one."""

    name: str
    difference: Estimate | None
    answer: Answer


@dataclass(frozen=True)
class Finding(Record):
    """A statement that the numbers could contradict. It holds or fails where the 95 % interval lies on one side of
    what is wanted, and is undecided where it spans both. ``wanted`` says what, ``detail`` what else a reader must
    know."""

    statement: str
    answer: Answer
    wanted: str
    parts: tuple[Comparison, ...]
    detail: str


@dataclass(frozen=True)
class Check(Record):
    """What holds by construction, unless the code is broken; judged exactly, never within an interval."""

    statement: str
    answer: Answer
    detail: str


@dataclass(frozen=True)
class RoundReport(Record):
    """One round: losses, gain and its error over the ``rows`` that decided whether it is kept; of a round of alignment
    (``objective`` dpo or grpo) shares of prompts in place of losses."""

    domain: str
    round: int
    val_before: float | None
    val_after: float | None
    gain: float | None
    gain_error: float | None
    rows: int
    committed: bool
    manifest: str | None
    steps: int
    restores: int
    seconds: float | None
    reason: str
    objective: str = "sft"

    @property
    def name(self) -> str:
        return f"{self.domain} r{self.round}"

    @property
    def aligned(self) -> bool:
        return self.objective != "sft"


def later_rounds(rounds: Sequence[RoundReport]) -> list[RoundReport]:
    """Those of residual boosting that came after another of their domain. A number does not tell: numbers go on where a
    domain was replaced or its rounds merged, and the first of what it then has is no later one."""
    first: dict[str, int] = {}
    for row in rounds:
        first[row.domain] = min(row.round, first.get(row.domain, row.round))
    return [row for row in rounds if row.round > first[row.domain] and not row.aligned]


@dataclass(frozen=True)
class RouterReport(Record):
    """``<policy>_regret``: loss above the best combination of each row in hindsight, over the rows of all domains.
    ``regrets[mode][owner]`` the same with intervals. ``accuracy``: share of rows that its gates served as well
    as that best, within 0.01 nats. ``best_single``: the one domain that is best alone. ``notes``: what was served."""

    rows: int
    regret: float | None
    label_regret: float | None
    all_on_regret: float | None
    base_regret: float | None
    best_single_regret: float | None
    accuracy: float | None
    best_single: str | None
    notes: tuple[str, ...]
    regrets: dict[str, dict[str, Estimate | None]]


@dataclass(frozen=True)
class BestCombination(Record):
    """The combination that saves most on a domain's rows, chosen in hindsight, and how much against the base."""

    mask: int
    domains: tuple[str, ...]
    gain: float


@dataclass(frozen=True)
class SweepReport(Record):
    """How much was measured and how fast. ``reused`` outcomes were there before. ``best`` is by domain."""

    rows: int | None = None
    combinations: int | None = None
    rows_per_s: float | None = None
    seconds: float | None = None
    reused: int | None = None
    best: dict[str, BestCombination] | None = None


@dataclass(frozen=True)
class Example(Record):
    """The first row of ``owner`` that was asked, its source's answer, and the base's and the routed one."""

    owner: str
    prompt: str
    reference: str
    base: str
    base_right: bool
    routed: str
    routed_right: bool


@dataclass(frozen=True)
class AnswersReport(Record):
    """Greedy answers of at most ``tokens`` tokens that a verifier judged. ``rows`` is how many rows of each owner and
    group were asked, ``right[mode][owner or group]`` the share of right answers, None where a mode has no meaning for
    all of the rows. ``wrong_less_base`` is the share of wrong answers, routed − base, over ``EVERY`` row. ``unasked``
    is by owner and reason."""

    rows: dict[str, int]
    tokens: int
    right: dict[str, dict[str, Share | None]]
    wrong_less_base: Estimate | None
    unasked: dict[str, dict[str, int]]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class FigureFile(Record):
    """A drawn figure, its path relative to the report."""

    file: str
    title: str


@dataclass(frozen=True)
class Report(Record):
    """A campaign's report.

    ``owners`` are the domains, then the kinds of rows that no domain owns (``mixed:dose``), ``groups`` those of
    ``ALL``, ``MIXED`` and ``FOREIGN`` that have rows. ``loss[mode][owner]`` and ``losses`` (with intervals, and by
    group too) are over the very same sweep rows, ``rows[owner]`` of them. ``validation`` rows are others: those that
    selected snapshots or decided on rounds; ``isolated_at_commit``, drift and ``matrix`` stand on all of them, a
    round's losses on those that decided. ``key_metrics`` are the few that MLflow shows.

    ``overlap`` is of claims, which are made disjoint. What is not made so is of energies on training tokens:
    ``energy_held[domain][side]``, what claims hold; ``delta_overlap[later][earlier]``, how much of the later delta lies
    in the space that holds 99 % of the earlier one's, ``claim_overlap`` how much in what that one claimed of outputs;
    ``foreign[tokens of][stacks of]``, what a domain's stacks write on another's tokens against that one's own there.
    """

    campaign: str
    domains: tuple[str, ...]
    owners: tuple[str, ...]
    base: BaseRef
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]
    rows: dict[str, int]
    rows_note: str
    loss: dict[str, dict[str, float | None]]
    losses: dict[str, dict[str, Estimate | None]]
    router: RouterReport
    answers: AnswersReport
    gates: dict[str, dict[str, float | None]]
    stacks: tuple[RoundReport, ...]
    validation_rows: dict[str, int]
    validation_base: dict[str, float | None]
    isolated_at_commit: dict[str, float | None]
    isolated_drift_max: float | None
    isolated_drift: dict[str, float | None]
    isolated_drift_rows: int
    matrix: dict[str, dict[str, dict[str, float | None]]]
    overlap: dict[str, dict[str, float | None]]
    energy_held: dict[str, dict[str, Spread]]
    delta_overlap: dict[str, dict[str, Spread]]
    claim_overlap: dict[str, dict[str, Spread]]
    foreign: dict[str, dict[str, Spread]]
    capacity: dict[str, dict[str, float | None]]
    basis_rank_mean: dict[str, float | None]
    sweep: SweepReport
    timing: dict[str, float | None]
    data_counts: dict[str, dict[str, int]]
    environment: dict[str, str]
    config: str
    key_metrics: dict[str, float]
    figures: tuple[FigureFile, ...] = ()
    aligned_answers: dict[str, tuple[BeforeAfter, ...]] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Canonical JSON: equal reports give equal bytes."""
        return canonical_json(self.to_dict()) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises IntegrityError for a report that another version wrote."""
        return cls.from_dict(json.loads(data))

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(group for group in (ALL, MIXED, FOREIGN) if self.rows[group])

    @property
    def measured_owners(self) -> tuple[str, ...]:
        """The owners that have sweep rows."""
        return tuple(owner for owner in self.owners if self.rows[owner])

    def count(self, answer: Answer) -> int:
        """How many findings have this answer."""
        return sum(finding.answer == answer for finding in self.findings)

    def modes(self, modes: tuple[str, ...]) -> list[str]:
        """Those of ``modes`` that were measured and say something of their own: ``parents`` is left out where it is
        ``isolated``, the context in which stacks trained having been their own alone."""
        known = [mode for mode in modes if any(value is not None for value in self.loss[mode].values())]
        same = self.loss["parents"] == self.loss["isolated"]
        return [mode for mode in known if mode != "parents" or not same]
