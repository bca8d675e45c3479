"""A real spike is undone as if it had not been; a batch that is hard for everyone is no spike, nor is noise."""

from __future__ import annotations

import json
import math
import random

import pytest
import rank_work
from ranks import on_ranks
from tiny_campaign import campaign, write_inputs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LEAP_AT = 6
# In the second round: its parent has learned enough to lose by a leap, which the random base has not.
TWELVE = {"steps": 12, "eval_every": 4, "scheduler": "constant_with_warmup", "warmup_steps": 2}
# Two rows a step: a row of the rare kind then makes its batch.
MIXED = {"steps": 40, "global_batch": 2, "per_device_batch": 1, "eval_every": 10, "max_rounds": 1}


def write_rows(path, *, rare_every: int = 0) -> None:
    """Rows that always ask for the same word; every so many, one asks for letters that nobody can know."""
    draw, rows = random.Random(0), []
    for number in range(120):
        rare = rare_every and number % rare_every == 0
        answer = "".join(draw.choice("qwxzkvjy") for _ in range(24)) if rare else "alpha"
        rows.append(json.dumps({"prompt": f"{'spell' if rare else 'say'} {number}", "completion": answer}))
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    inputs, stores = write_inputs(tmp_path_factory.mktemp("inputs")), tmp_path_factory.mktemp("stores")
    write_rows(inputs / "bb.jsonl")
    write_rows(inputs / "cc.jsonl", rare_every=12)

    def config(name: str, domain: str, **training):
        return campaign(inputs, stores / name, (domain,), training=training)

    write_rows(inputs / "dd.jsonl", rare_every=1)
    jobs = {
        "mixed": (rank_work.watched_round, (config("mixed", "cc", **MIXED),)),
        "noise": (rank_work.watched_round, (config("noise", "dd", **TWELVE),)),
    }
    for stage in (0, 2):
        leap = config(f"leap{stage}", "bb", zero_stage=stage, **TWELVE)
        jobs[f"leap{stage}"] = (rank_work.watched_round, (leap, 1, LEAP_AT))
    return on_ranks(2, rank_work.several, jobs)


@pytest.fixture(params=[0, 2], ids=["stage0", "stage2"])
def leap(ranks, request):
    return ranks[0][f"leap{request.param}"]


def test_a_leap_is_seen_in_the_next_loss_and_undone(leap):
    assert leap.restores[0]["step"] == LEAP_AT + 1
    assert leap.verdicts[LEAP_AT + 1] == "restore"
    assert [step for step, verdict in leap.verdicts.items() if verdict != "go on"] == [LEAP_AT + 1]


def test_weights_and_balance_are_those_of_the_best_snapshot(leap):
    (restore,) = leap.restores
    assert restore["best_step"] == 4
    assert restore["weights_back"]
    assert restore["fractions_had_moved"]
    assert restore["fractions_back"]


def test_the_optimizer_starts_anew_from_there(leap):
    """Adam's first step is at most the rate: neither moments, nor their step, nor a master copy of the spiked weights
    is left."""
    (restore,) = leap.restores
    rates = {line["step"]: line["learning_rate"] for line in leap.round.history[1:]}
    assert restore["optimizer_fresh"]
    assert 0 < restore["moved"] <= rates[LEAP_AT + 2] * 1.01


def test_the_rate_warms_up_anew(leap):
    rates = {line["step"]: line["learning_rate"] for line in leap.round.history[1:]}
    full = rates[LEAP_AT - 1]
    after = [rates[LEAP_AT + 1 + i] / full for i in range(1, 4)]
    assert after == pytest.approx([1 / 2, 1, 1])


def test_training_goes_on_and_beats_the_parent(leap):
    outcome = leap.round.outcome
    assert (outcome.restores, outcome.steps, outcome.committed) == (1, 12, True)
    losses = {line["step"]: line["selection_loss"] for line in leap.round.history if "selection_loss" in line}
    assert losses[12] < losses[4] < losses[0]


def test_rows_of_noise_teach_what_can_be_learned_of_them_and_undo_nothing(ranks):
    """Twenty-four letters of eight: ln 8 nats each at best, and no step of it is a spike."""
    noise = ranks[0]["noise"]
    assert set(noise.verdicts.values()) == {"go on"}
    selection = [line["selection_loss"] for line in noise.round.history if "selection_loss" in line]
    assert noise.round.outcome.committed == (min(selection) < selection[0])
    assert math.log(8) < min(selection) <= selection[0] < math.inf


def test_all_ranks_agree(ranks):
    for name, mine in ranks[0].items():
        other = ranks[1][name]
        assert mine.round.history == other.round.history
        assert mine.restores == other.restores


def test_a_batch_that_is_hard_for_the_parent_too_is_kept(ranks):
    mixed = ranks[0]["mixed"]
    assert mixed.asked, "no batch was suspected, so nothing was judged by the parent"
    assert set(mixed.verdicts.values()) == {"go on"}
    assert mixed.round.outcome.restores == 0
    losses = {int(line["step"]): line["loss"] for line in mixed.round.history[1:]}
    usual = sorted(losses.values())[len(losses) // 2]
    assert all(losses[step] > usual + 0.5 for step in mixed.asked)
