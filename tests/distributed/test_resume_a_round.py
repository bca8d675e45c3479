"""A round that was killed in the middle goes on from its last checkpoint: to the bit at the same number of workers, to
rounding at another, and over no sample twice or never.
"""

from __future__ import annotations

import pytest
import rank_work
import torch
from ranks import on_ranks
from tiny_campaign import campaign, write_inputs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROUNDING = 1e-5
STAGES = (0, 1, 2, 3)
EXACT = {"compute_dtype": "float32"}  # in bf16 the length of a micro-batch alone moves a loss by 1e-5 of it
# A base that knows nothing, of settings alone (a language model from stacks).
RANDOM = {"layers": 2, "hidden": 64, "heads": 2, "kv_heads": 2, "intermediate": 128, "context": 128, "std": 0.1}
# Validated before and after every kill, with a rate that depends on the step, and a checkpoint after each.
SIX = {"steps": 6, "eval_every": 2, "scheduler": "cosine", "warmup_steps": 2, "checkpoint_every_s": 1e-6}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """By name, what each rank of each process group did: ``undisturbed0``…, ``killed0``…, and ``elastic``, which goes
    from two ranks to one and back, beside ``exact``, which does not. ``undisturbed_random`` and
    ``killed_random`` are on a base of random weights."""
    inputs, stores = write_inputs(tmp_path_factory.mktemp("inputs")), tmp_path_factory.mktemp("stores")
    random = {"model": "random:llama", "random": RANDOM, "cache_dir": str(stores)}

    def config(name: str, base=(), **training):
        return campaign(inputs, stores / name, ("aa", "bb"), training={**SIX, **training}, base=dict(base))

    def elastic(**training):
        return config("elastic", EXACT, **training)

    part, both = rank_work.part_of_a_round, rank_work.killed_and_resumed
    jobs = {"elastic": (part, (elastic(), 2)), "exact": (part, (config("exact", EXACT, checkpoint_every_s=0),))}
    for stage in STAGES:
        base = {"cache_dequantized": stage < 3}
        undisturbed = config(f"undisturbed{stage}", base, zero_stage=stage, checkpoint_every_s=0)
        jobs[f"undisturbed{stage}"] = (part, (undisturbed,))
        jobs[f"killed{stage}"] = (both, (config(f"killed{stage}", base, zero_stage=stage), 3))
    jobs["undisturbed_random"] = (part, (config("undisturbed_random", random, checkpoint_every_s=0),))
    jobs["killed_random"] = (both, (config("killed_random", random), 3))
    first = on_ranks(2, rank_work.several, jobs)
    second = on_ranks(1, rank_work.several, {"elastic": (part, (elastic(num_workers=1, per_device_batch=2), 2))})
    third = on_ranks(2, rank_work.several, {"elastic": (part, (elastic(),))})
    found = {name: [rank[name] for rank in first] for name in jobs if name != "elastic"}
    return found | {"elastic": [[rank["elastic"] for rank in group] for group in (first, second, third)]}


@pytest.mark.parametrize("stage", [*STAGES, "_random"])
def test_the_same_number_of_workers_ends_with_the_same_bits(parts, stage):
    for whole, (killed, resumed) in zip(parts[f"undisturbed{stage}"], parts[f"killed{stage}"], strict=True):
        assert killed.ended is None
        assert resumed.resumed_after == 3
        assert resumed.ended.history == whole.ended.history
        assert resumed.ended.outcome.val_after == whole.ended.outcome.val_after
        assert resumed.ended.outcome.steps == 6
        for key, tensor in whole.ended.stack.items():
            assert torch.equal(tensor, resumed.ended.stack[key]), key


def test_another_number_of_workers_ends_with_the_same_stack(parts):
    """Two ranks for two steps, one with smaller micro-batches for two, two to the end."""
    whole, resumed = parts["exact"][0].ended, parts["elastic"][2][0].ended
    for mine, theirs in zip(resumed.history, whole.history, strict=True):
        for key in {"loss", "selection_loss", "load_balance"} & mine.keys():
            assert mine[key] == pytest.approx(theirs[key], rel=ROUNDING), (mine["step"], key)
    for key, tensor in whole.stack.items():
        torch.testing.assert_close(tensor, resumed.stack[key], rtol=ROUNDING, atol=ROUNDING, msg=key)


def test_no_sample_is_skipped_or_repeated(parts):
    def ledger(groups):
        return sorted(unit for group in groups for rank in group for unit in rank.taken)

    assert [group[0].resumed_after for group in parts["elastic"]] == [0, 2, 4]
    whole = ledger([parts["undisturbed2"]])
    assert [(step, place) for step, place, _ in whole] == [(step, place) for step in range(1, 7) for place in range(8)]
    assert ledger(parts["elastic"]) == whole
    for stage in STAGES:
        halves = [list(half) for half in zip(*parts[f"killed{stage}"], strict=True)]
        assert ledger(halves) == whole


def test_a_stack_on_a_random_base_learns(parts):
    for whole in parts["undisturbed_random"]:
        assert whole.ended.outcome.committed
        assert whole.ended.outcome.val_after < whole.ended.outcome.val_before - 0.1
