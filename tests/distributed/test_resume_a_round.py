"""A round that was stopped in the middle goes on where it was: to the bit at the same number of workers, to rounding at
another, and over no sample twice or never.
"""

from __future__ import annotations

import pytest
import rank_work
import torch
from ranks import on_ranks
from tiny_campaign import campaign, write_inputs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROUNDING = 1e-5
STAGES = (0, 1, 2)
# Validated before and after every stop, with a rate that depends on the step.
SIX = {"steps": 6, "eval_every": 2, "scheduler": "cosine", "warmup_steps": 2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """By name, what each rank of each process group did: ``undisturbed``, ``stage0``…, and ``elastic``, which goes from
    two ranks to one and back."""
    inputs, stores = write_inputs(tmp_path_factory.mktemp("inputs")), tmp_path_factory.mktemp("stores")

    def config(name: str, workers: int = 2, **training):
        settings = {**SIX, "num_workers": workers, **training}
        return campaign(inputs, stores / name, ("aa", "bb"), training=settings)

    part, both = rank_work.part_of_a_round, rank_work.interrupted_and_resumed
    jobs = {"elastic": (part, (config("elastic"), 2))}
    for stage in STAGES:
        jobs[f"undisturbed{stage}"] = (part, (config(f"undisturbed{stage}", zero_stage=stage),))
        jobs[f"stage{stage}"] = (both, (config(f"stage{stage}", zero_stage=stage), 3))
    first = on_ranks(2, rank_work.several, jobs)
    second = on_ranks(1, rank_work.several, {"elastic": (part, (config("elastic", 1), 2))})
    third = on_ranks(2, rank_work.several, {"elastic": (part, (config("elastic"),))})
    found = {name: [rank[name] for rank in first] for name in jobs if name != "elastic"}
    return found | {"elastic": [[rank["elastic"] for rank in group] for group in (first, second, third)]}


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_number_of_workers_ends_with_the_same_bits(parts, stage):
    for whole, (stopped, resumed) in zip(parts[f"undisturbed{stage}"], parts[f"stage{stage}"], strict=True):
        assert stopped.ended is None
        assert resumed.ended.history == whole.ended.history
        assert resumed.ended.outcome.val_after == whole.ended.outcome.val_after
        assert resumed.ended.outcome.steps == 6
        for key, tensor in whole.ended.stack.items():
            assert torch.equal(tensor, resumed.ended.stack[key]), key


def test_another_number_of_workers_ends_with_the_same_stack(parts):
    """Two ranks for two steps, one for two, two to the end."""
    whole, resumed = parts["undisturbed2"][0].ended, parts["elastic"][2][0].ended
    for mine, theirs in zip(resumed.history, whole.history, strict=True):
        for key in {"loss", "val_loss", "load_balance"} & mine.keys():
            assert mine[key] == pytest.approx(theirs[key], rel=ROUNDING), (mine["step"], key)
    for key, tensor in whole.stack.items():
        torch.testing.assert_close(tensor, resumed.stack[key], rtol=ROUNDING, atol=ROUNDING, msg=key)


def test_no_sample_is_skipped_or_repeated(parts):
    def ledger(groups):
        return sorted(made for group in groups for rank in group for made in rank.made)

    assert ledger(parts["elastic"]) == ledger([parts["undisturbed2"]])
    for stage in STAGES:
        halves = [list(half) for half in zip(*parts[f"stage{stage}"], strict=True)]
        assert ledger(halves) == ledger([parts[f"undisturbed{stage}"]])
