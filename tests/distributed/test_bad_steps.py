"""A step that is not finite restores the best snapshot; a round that is worse than its parent leaves no trace."""

import math

import pytest
import rank_work
import torch
from ranks import on_ranks
from tiny_campaign import campaign, write_inputs

from bs_cluster.records import DomainRecord

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# A constant rate, so that four steps alone are the first four of eight.
EIGHT = {"steps": 8, "eval_every": 2, "scheduler": "constant_with_warmup"}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Every case on two ranks; only the last rank's numbers are poisoned."""
    inputs, stores = write_inputs(tmp_path_factory.mktemp("inputs")), tmp_path_factory.mktemp("stores")

    def config(name: str, **training):
        return campaign(inputs, stores / name, ("aa", "bb"), training={**EIGHT, **training})

    poisoned = rank_work.poisoned_round
    good, wild = config("rejected"), config("rejected", learning_rate=100)
    jobs = {
        "four": (rank_work.first_round, (config("four", steps=4),)),
        "three_in_a_row": (poisoned, (config("three", max_spikes=3), [5, 6, 7], "gradient")),
        "loss": (poisoned, (config("loss"), [5], "loss")),
        "rejected": (rank_work.rejected_round, (good, wild)),
    }
    for stage in (0, 1, 2):
        jobs[f"gradient{stage}"] = (poisoned, (config(f"gradient{stage}", zero_stage=stage), [3], "gradient"))
    return on_ranks(2, rank_work.several, jobs)


@pytest.fixture(scope="module")
def found(ranks):
    return ranks[0]


CASES = ["loss", "gradient0", "gradient1", "gradient2"]


@pytest.mark.parametrize("case", CASES)
def test_a_bad_step_is_undone_and_training_goes_on(found, case):
    outcome = found[case].outcome
    assert (outcome.restores, outcome.steps, outcome.committed) == (1, 8, True)
    assert outcome.val_after < outcome.val_before
    assert all(torch.isfinite(tensor).all() for tensor in found[case].stack.values())


@pytest.mark.parametrize("case", CASES)
def test_the_step_after_it_starts_from_the_best_snapshot(found, case):
    """Nothing of the bad step is left: the loss goes on from where the snapshot was."""
    losses = {line["step"]: line["selection_loss"] for line in found[case].history if "selection_loss" in line}
    bad = 5 if case == "loss" else 3
    assert losses[bad + 1] < losses[bad - 1] + 0.02
    assert losses[8] < losses[bad - 1]


@pytest.mark.parametrize("case", [*CASES, "three_in_a_row"])
def test_both_ranks_agree_though_one_saw_it(ranks, case):
    mine, other = (rank[case] for rank in ranks)
    assert mine.history == other.history
    assert all(torch.equal(tensor, other.stack[key]) for key, tensor in mine.stack.items())


def test_three_in_a_row_end_the_round_at_its_best_snapshot(found):
    """To the bit what four steps alone give: steps 5 to 7 left nothing behind."""
    ended, four = found["three_in_a_row"], found["four"]
    assert (ended.outcome.steps, ended.outcome.restores) == (7, 3)
    assert ended.outcome.committed
    assert ended.outcome.val_after == four.outcome.val_after
    assert all(torch.equal(tensor, four.stack[key]) for key, tensor in ended.stack.items())


def test_a_poisoned_number_is_not_in_the_curve(found):
    for case in (*CASES, "three_in_a_row"):
        assert all(math.isfinite(value) for line in found[case].history for value in line.values())


def test_a_round_worse_than_its_parent_is_not_committed(found):
    case = found["rejected"]
    assert case["first"].outcome.committed
    assert not case["second"].outcome.committed
    assert "more than 0.002 beyond 1 standard errors was wanted" in case["second"].outcome.reason


def test_it_leaves_the_parents_as_they_were_bit_for_bit(ranks):
    for case in (rank["rejected"] for rank in ranks):
        assert case["after"]["names"] == case["before"]["names"] == ("aa_r1",)
        assert case["after"]["losses"] == case["before"]["losses"]
        assert case["after"]["stacks"].keys() == case["before"]["stacks"].keys()
        for key, tensor in case["before"]["stacks"].items():
            assert torch.equal(tensor, case["after"]["stacks"][key]), key


def test_the_domain_closes_with_both_rounds_told(found):
    record = found["rejected"]["then"]
    assert isinstance(record, DomainRecord)
    assert [(r.stack.round, r.committed) for r in record.rounds] == [(1, True), (2, False)]
