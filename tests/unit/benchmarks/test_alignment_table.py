"""What rounds of alignment gained: every one of them, and means whose errors are those of their formulas."""

from __future__ import annotations

import dataclasses

import pytest
from tiny_history import commit_round, domain_record

from benchmarks.alignment import render, trials_of
from bs_cluster.store import Store


def campaign(folder, seed: int, gain: float):
    """One domain: a supervised round, a dpo round that gained, a grpo round that was turned away."""
    store = Store(str(folder / f"store{seed}"), "tiny")
    for number in (1, 2):
        commit_round(store, folder / f"staging{seed}", "chat", number)
    record = domain_record(store, "chat", rejected=1)
    sft, dpo, grpo = record.rounds
    dpo = dataclasses.replace(dpo, objective="dpo", val_before=0.5, val_after=0.5 + gain, gain=gain, gain_error=0.03)
    grpo = dataclasses.replace(grpo, objective="grpo", val_before=0.2, val_after=0.2, gain=0.0, gain_error=0.04)
    store.close_domain(dataclasses.replace(record, rounds=(sft, dpo, grpo)))
    return trials_of(store, seed)


def lines(trials) -> list[list[str]]:
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in render(trials).splitlines()]
    return [row for row in found if len(row) > 2 and set(row[0]) - {"-", ":", " "}]


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    return [*campaign(folder, 1, 0.3), *campaign(folder, 2, 0.1)]


def test_every_round_of_alignment_is_told_kept_or_turned_away(trials):
    rows = {tuple(row[:2]): row for row in lines(trials) if len(row) == 9}
    assert set(rows) == {
        ("seed", "round"),
        *((seed, name) for seed in "12" for name in ("chat_r2 (dpo)", "chat_r3 (grpo)")),
    }
    assert rows["1", "chat_r2 (dpo)"][3:8] == ["50.0%", "80.0%", "+0.300 ± 0.030", "–", "yes"]
    assert rows["2", "chat_r3 (grpo)"][3:8] == ["20.0%", "20.0%", "+0.000 ± 0.040", "–", "no"]


def test_the_mean_has_the_error_over_prompts_and_that_over_seeds(trials):
    rows = {row[0]: row[1:] for row in lines(trials) if len(row) == 7}
    # Standard errors: sqrt(2 * 0.03²) / 2 over prompts, |0.3 - 0.1| / 2 over the two seeds.
    assert rows["chat_r2 (dpo)"] == ["2", "+0.200", "0.021", "0.100", "+0.100", "+0.300"]
