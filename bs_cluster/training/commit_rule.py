"""May a stack be frozen? Decided on rows that had no part in choosing its snapshot, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bs_cluster.config.rounds import SFT
from bs_cluster.estimates import Estimate

Row = TypeVar("Row")
RISE = "loss_rise/"  # before a domain's name, among metrics: what its rows lose more since a round of alignment


@dataclass(frozen=True)
class Decision:
    """``reason`` is what people and the domain's record are told."""

    commit: bool
    reason: str


def split_validation(rows: Sequence[Row], selection_share: float) -> tuple[Sequence[Row], Sequence[Row]]:
    """(rows that choose the snapshot, rows that decide about the commit), in their order, at least two each: one row
    has no error.

    Validation rows stand in the order of a hash of their prompt, so a cut is a random split that never changes.
    """
    cut = min(max(round(selection_share * len(rows)), 2), len(rows) - 2)
    return rows[:cut], rows[cut:]


def decide(gain: Estimate, wanted: float, errors: float, over_base: Estimate | None = None) -> Decision:
    """Commits if the paired mean gain over the parent, less ``errors`` standard errors, exceeds ``wanted`` (nats per
    completion token), and likewise the gain over the bare base where that is given."""
    for parent, found in (("its parent", gain), ("the base", over_base)):
        if found is None:
            continue
        told = f"gain over {parent} {found.mean:.4f} ± {found.error:.4f} on {found.rows} rows"
        sure = found.mean - errors * found.error if errors else found.mean
        if not math.isfinite(sure) or sure <= wanted or found.mean <= 0:
            return Decision(False, f"{told}; more than {wanted:g} beyond {errors:g} standard errors was wanted")
    return Decision(True, gained(gain.mean, gain.error, gain.rows))


def gained(gain: float, error: float, rows: int) -> str:
    """Why a round was committed, in words: a function of what its manifest holds."""
    return f"gain {gain:.4f} ± {error:.4f} on {rows} rows"


def decide_aligned(gain: Estimate, errors: float, rises: Mapping[str, float], limit: float) -> Decision:
    """Commits a round of alignment if the share of held-out prompts that it gained, less ``errors`` standard errors, is
    above nothing, and no domain's rows (``rises``, nats per completion token by domain) lose more than ``limit``."""
    told = gained_share(gain.mean, gain.error, gain.rows, rises)
    sure = gain.mean - errors * gain.error if errors else gain.mean
    if not math.isfinite(sure) or sure <= 0 or gain.mean <= 0:
        return Decision(False, f"{told}; more than nothing beyond {errors:g} standard errors was wanted")
    worse = [domain for domain, rise in rises.items() if not rise <= limit]
    if worse:
        return Decision(False, f"{told}; {', '.join(worse)} may lose {limit:g} more at most (max_loss_rise)")
    return Decision(True, told)


def gained_share(gain: float, error: float, rows: int, rises: Mapping[str, float]) -> str:
    """Why a round of alignment was committed, in words: a function of what its manifest holds."""
    costs = ", ".join(f"{domain} {rise:+.4f}" for domain, rise in sorted(rises.items()))
    return f"gain {gain:.3f} ± {error:.3f} of {rows} prompts; nats per token on rows of {costs}"


def committed_because(objective: str, metrics: Mapping[str, float]) -> str:
    """A committed round's reason from its manifest's objective and metrics."""
    gain, error, rows = metrics["gain"], metrics["gain_error"], int(metrics["rows"])
    if objective == SFT:
        return gained(gain, error, rows)
    rises = {name.removeprefix(RISE): value for name, value in metrics.items() if name.startswith(RISE)}
    return gained_share(gain, error, rows, rises)
