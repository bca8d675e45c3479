"""A round of alignment as a round like any other: its reference is its parent to the bit, it goes on where it was
killed, at any number of workers, and where it is turned away nothing is left of it.
"""

from __future__ import annotations

import pytest
import rank_alignment
import rank_work
import torch
from ranks import on_ranks
from tiny_alignment import aligned, tiny_round, write_pairs
from tiny_campaign import campaign, write_inputs

from bs_cluster.config.schema import CampaignConfig

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

EXACT = {"compute_dtype": "float32"}
WHOLE_NOWHERE = {"cache_dequantized": False}
KINDS = ("dpo", "grpo")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_pairs(write_inputs(tmp_path_factory.mktemp("inputs")))


def config(inputs, store, kind: str, domains=("aa",), training=(), base=(), **entry) -> CampaignConfig:
    training = {"max_rounds": 1, "steps": 3, **dict(training)}
    made = campaign(inputs, store, domains, training=training, base=EXACT | dict(base))
    return aligned(made, {"aa": tiny_round(inputs, kind, **entry)})


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    """By name, what each rank did: ``<kind>`` undisturbed, ``<kind> killed`` its two parts, ``<kind> alone`` on one
    rank, ``rejected`` with the domain after it, and ``plain`` a campaign that never tried to align."""
    stores = tmp_path_factory.mktemp("stores")
    often = {"checkpoint_every_s": 1e-6}
    whole, killed = rank_alignment.aligned_round, rank_alignment.aligned_and_killed
    jobs = {}
    for kind in KINDS:
        jobs[kind] = (whole, (config(inputs, stores / kind, kind),))
        jobs[f"{kind} killed"] = (killed, (config(inputs, stores / f"{kind} killed", kind, training=often), 2))
        in_parts = config(inputs, stores / f"{kind} in parts", kind, training={"zero_stage": 3}, base=WHOLE_NOWHERE)
        jobs[f"{kind} in parts"] = (whole, (in_parts,))
    turned_away = config(inputs, stores / "rejected", "dpo", ("aa", "bb"), max_loss_rise=0, learning_rate=0.05)
    jobs["rejected"] = (whole, (turned_away, None, True))
    plain = campaign(inputs, stores / "plain", ("aa", "bb"), training={"max_rounds": 1, "steps": 3}, base=EXACT)
    jobs["plain"] = (rank_work.whole_campaign, (plain,))
    found = on_ranks(2, rank_work.several, jobs)
    one = {"num_workers": 1}
    alone = {kind: (whole, (config(inputs, stores / f"{kind} alone", kind, training=one),)) for kind in KINDS}
    by_one = on_ranks(1, rank_work.several, alone)
    both = {name: [rank[name] for rank in found] for name in jobs}
    return both | {f"{kind} alone": [by_one[0][kind]] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_parent_to_the_bit_at_every_step(done, kind):
    for rank in done[kind]:
        assert rank.parent_kept
        assert rank.ended.outcome.objective == kind
        assert rank.ended.outcome.steps == 4


def test_the_loss_is_that_of_the_paper(done):
    """Rafailov et al., equation 7, from this project's own evaluator, on the last micro-batch."""
    for rank in done["dpo"]:
        told, own = rank.losses
        assert told == pytest.approx(own, rel=1e-4)
        assert own != pytest.approx(2 * 0.6931, rel=1e-2), "the stack has learned nothing by the last step"


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_round_ends_with_the_same_bits(done, kind):
    for whole, (killed, resumed) in zip(done[kind], done[f"{kind} killed"], strict=True):
        assert killed.ended is None
        assert resumed.resumed_after == 2
        assert resumed.ended.history == whole.ended.history
        for key, tensor in whole.ended.stack.items():
            assert torch.equal(tensor, resumed.ended.stack[key]), key
        assert resumed.stacks == whole.stacks


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_parts_makes_the_same_bits(done, kind):
    """Ranks draw answers of different lengths, and one waits for the other."""
    for whole, parts in zip(done[kind], done[f"{kind} in parts"], strict=True):
        assert parts.ended.history == whole.ended.history
        assert parts.ended.outcome.val_after == whole.ended.outcome.val_after
        for key, tensor in whole.ended.stack.items():
            assert torch.equal(tensor, parts.ended.stack[key]), key


@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_makes_the_stack_that_two_make(done, kind):
    two, one = done[kind][0].ended, done[f"{kind} alone"][0].ended
    for mine, theirs in zip(one.history, two.history, strict=True):
        for key in {"loss", "selection_loss", "reward", "kl"} & mine.keys():
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), (mine["step"], key)
    for key, tensor in two.stack.items():
        torch.testing.assert_close(tensor, one.stack[key], rtol=1e-3, atol=1e-4, msg=key)


def test_a_round_that_is_turned_away_leaves_no_trace(done):
    """What it gained was paid for; the domain after it gets the stack that it has without any alignment."""
    rejected, plain = done["rejected"][0], done["plain"][0]
    assert not rejected.ended.outcome.committed
    assert "max_loss_rise" in rejected.ended.outcome.reason
    assert [outcome.objective for outcome in rejected.record.rounds] == ["sft", "dpo"]
    for rank in done["rejected"]:
        assert rank.record.row_losses == plain["records"]["aa"].row_losses
        assert rank.record.probe == plain["records"]["aa"].probe
    assert rejected.stacks == plain["weights"]
