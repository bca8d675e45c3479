"""What rounds of alignment gained, over finished campaigns that differ in their seed: docs/alignment.md's table.

    python -m benchmarks.alignment --campaigns stacks_store:aligned stacks_store:aligned1 stacks_store:aligned2

A line a round, kept or turned away, from its campaign's store; then, by round, the mean over campaigns with two errors:
that of the mean over held-out prompts, and that of the mean over seeds, which is the one that says whether a seed that
nobody has tried would gain too.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.evidence.campaign import Campaign
from bs_cluster.config.rounds import SFT
from bs_cluster.records import RoundOutcome
from bs_cluster.report.markdown import table
from bs_cluster.store import Store


class Trial(NamedTuple):
    """A round of alignment of the campaign of a seed; ``metrics`` are its stack's, none where it was turned away."""

    seed: int
    outcome: RoundOutcome
    metrics: Mapping[str, float]


def trials_of(store: Store, seed: int) -> list[Trial]:
    """The rounds of alignment of a campaign, in the order of its curriculum."""
    metrics = {ref.stack: manifest.metrics for ref, manifest in store.stacks()}
    outcomes = [outcome for record in store.domains() for outcome in record.rounds]
    return [Trial(seed, one, metrics.get(one.stack, {})) for one in outcomes if one.objective != SFT]


def render(trials: Sequence[Trial]) -> str:
    """Every round, then what the same round gained in the mean."""
    names = list(dict.fromkeys((one.outcome.stack.name, one.outcome.objective) for one in trials))
    return f"{_each(trials)}\n\n{_means(trials, names)}"


def _each(trials: Sequence[Trial]) -> str:
    header = ["seed", "round", "held-out prompts", "before", "after", "gain", "greedily right", "kept", "minutes"]
    rows = []
    for seed, outcome, metrics in trials:
        greedy = [metrics.get(f"greedy_{when}") for when in ("before", "after")]
        rows.append(
            [
                seed,
                f"{outcome.stack.name} ({outcome.objective})",
                outcome.rows,
                f"{outcome.val_before:.1%}",
                f"{outcome.val_after:.1%}",
                f"{outcome.gain:+.3f} ± {outcome.gain_error:.3f}",
                " → ".join(f"{share:.1%}" for share in greedy if share is not None) or "–",
                "yes" if outcome.committed else "no",
                f"{outcome.seconds / 60:.1f}",
            ]
        )
    return table(header, rows)


def _means(trials: Sequence[Trial], names: Sequence[tuple[str, str]]) -> str:
    header = ["round", "seeds", "gain, mean", "± over prompts", "± over seeds", "least", "greatest"]
    rows = []
    for name, objective in names:
        of = [one.outcome for one in trials if one.outcome.stack.name == name]
        gains = [outcome.gain for outcome in of]
        prompts = math.hypot(*(outcome.gain_error for outcome in of)) / len(of)
        seeds = f"{statistics.stdev(gains) / math.sqrt(len(of)):.3f}" if len(of) > 1 else "–"
        ends = f"{min(gains):+.3f}", f"{max(gains):+.3f}"
        rows.append(
            [f"{name} ({objective})", len(of), f"{statistics.fmean(gains):+.3f}", f"{prompts:.3f}", seeds, *ends]
        )
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="What rounds of alignment gained, over campaigns and their seeds.")
    parser.add_argument("--campaigns", nargs="+", required=True, help="store:name of finished campaigns")
    trials: list[Trial] = []
    for named in parser.parse_args().campaigns:
        campaign = Campaign.named(named)
        trials += trials_of(campaign.store, campaign.config.seed)
    print(render(trials))


if __name__ == "__main__":
    main()
