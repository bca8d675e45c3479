"""The one evaluator: a row's loss is the textbook's, its own, and the same wherever the row stands."""

from __future__ import annotations

import random

import pytest
import torch
from stacked_bases import SETTINGS as STACK
from stacked_bases import tiny_stacked_base
from tiny import save_tiny_base

from bs_cluster.adapter_format import PARTS
from bs_cluster.base.load import load_base
from bs_cluster.config import CampaignConfig
from bs_cluster.config.schema import BaseSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.inference.scoring import score_batch, score_routed
from bs_cluster.inference.stacked import StackedBase, stack_config
from bs_cluster.records import StackId
from bs_cluster.sweep.combinations import mask_weights
from bs_cluster.sweep.plan import plan_work
from bs_cluster.training.session import Session

DOMAINS = ("chat", "code")
SETTINGS = {"campaign": "demo", "domains": [{"name": d, "sources": [{"kind": "embedded", "name": d}]} for d in DOMAINS]}


@pytest.fixture(scope="module")
def stacked(tmp_path_factory) -> StackedBase:
    return tiny_stacked_base(tmp_path_factory.mktemp("base"), "gemma3", [StackId(domain, 1) for domain in DOMAINS])


def rows(count: int = 7) -> list[EncodedRow]:
    generator = random.Random(0)
    made = []
    for i in range(count):
        prompt, completion = generator.randint(2, 9), generator.randint(1, 12)
        ids = tuple(generator.randint(4, 258) for _ in range(prompt + completion))
        made.append(EncodedRow(ids, prompt, f"row{i}", "chat"))
    return made


def by_hand(stacked: StackedBase, row: EncodedRow) -> float:
    """Σ −log p of the completion, one unpadded row, float64."""
    with torch.no_grad():
        logits_TV = stacked.base.model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    total = 0.0
    for t in range(row.prompt_length, len(row.input_ids)):
        total -= float(torch.log_softmax(logits_TV[t - 1], dim=0)[row.input_ids[t]])
    return total


def test_a_batchs_losses_are_those_by_hand(stacked):
    for loss, row in zip(score_batch(stacked, rows()), rows(), strict=True):
        assert loss.tokens == row.completion_length
        assert loss.nll == pytest.approx(by_hand(stacked, row), rel=1e-5)


def test_a_rows_loss_does_not_depend_on_its_place_or_company(stacked):
    """To 1e-5 relative in fp32: only the order of summation differs."""
    some = rows()
    together = {row.id: loss for row, loss in zip(some, score_batch(stacked, some), strict=True)}
    backwards = {row.id: loss for row, loss in zip(some[::-1], score_batch(stacked, some[::-1]), strict=True)}
    alone = {row.id: score_batch(stacked, [row])[0] for row in some}
    for name, loss in together.items():
        assert backwards[name].nll == pytest.approx(loss.nll, rel=1e-5)
        assert alone[name].nll == pytest.approx(loss.nll, rel=1e-5)


def test_scoring_twice_gives_the_same_bits(stacked):
    assert score_batch(stacked, rows()) == score_batch(stacked, rows())


def test_rows_with_different_combinations_share_a_batch(stacked):
    some, weights = rows(4), [(0.0, 0.0), (1.0, 0.0), (0.3, 1.0), (1.0, 1.0)]
    routed = score_routed(stacked, some, weights, DOMAINS)
    for row, mine, loss in zip(some, weights, routed, strict=True):
        assert score_routed(stacked, [row], [mine], DOMAINS)[0].nll == pytest.approx(loss.nll, rel=1e-5)
    stacked.fire([])
    assert by_hand(stacked, some[0]) == pytest.approx(routed[0].nll, rel=1e-5)
    stacked.fire(["chat_r1"])
    assert by_hand(stacked, some[1]) == pytest.approx(routed[1].nll, rel=1e-5)
    stacked.fire(stacked.names)


@pytest.mark.parametrize(("nf4", "tolerance"), [(False, 1e-5), (True, 0.02)])
def test_a_sweeps_losses_are_the_same_for_any_batching(tmp_path, nf4: bool, tolerance: float):
    """In nats per completion token. In bf16, a row's sums are rounded otherwise in other company; no more than that."""
    stacked = tiny_stacked_base(tmp_path, "gemma3", [StackId(domain, 1) for domain in DOMAINS], 1.0, nf4=nf4)
    some = rows()
    requests = [(row, mask) for row in range(len(some)) for mask in range(4)]
    measured = []
    for batch_tokens in (1, 30, 70, 4096):
        found = {}
        for batch in plan_work(requests, [len(row.input_ids) for row in some], batch_tokens):
            weights = [mask_weights(mask, len(DOMAINS)) for _, mask in batch.requests]
            losses = score_routed(stacked, [some[row] for row, _ in batch.requests], weights, DOMAINS)
            found |= {request: loss.mean for request, loss in zip(batch.requests, losses, strict=True)}
        measured.append(found)
    spread = max(max(m[r] for m in measured) - min(m[r] for m in measured) for r in requests)
    assert spread <= tolerance
    by_mask = [measured[0][(0, mask)] for mask in range(4)]
    assert max(by_mask) - min(by_mask) > 5 * tolerance, "combinations alike would pass any sweep"


def test_scoring_leaves_the_model_in_eval_mode_without_a_graph(stacked):
    stacked.base.model.train()
    score_batch(stacked, rows(2))
    assert not stacked.base.model.training
    assert all(parameter.grad is None for parameter in stacked.base.model.parameters())


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_a_session_scores_in_row_order_however_it_batches(stacked, batch_tokens: int):
    config = CampaignConfig.model_validate(SETTINGS | {"training": {"eval_batch_tokens": batch_tokens}})
    session = Session(config, stacked, store=None, rows=None, report=None)  # type: ignore[arg-type]
    some = rows()
    for loss, row in zip(session.score(some), some, strict=True):
        assert loss.tokens == row.completion_length
        assert loss.nll == pytest.approx(by_hand(stacked, row), rel=1e-5)


def test_a_stacks_start_follows_from_its_seed_alone(tmp_path):
    folder = save_tiny_base(tmp_path, "llama")
    starts = []
    for noise in range(2):
        torch.manual_seed(noise)
        base = load_base(BaseSection(model=folder), device="cpu")
        fresh = StackedBase(base, cache_dequantized=False)
        before = torch.get_rng_state()
        name = fresh.begin(stack_config(STACK, StackId("chat", 1), 0), seed=7)
        assert torch.equal(torch.get_rng_state(), before)
        starts.append([getattr(site, part)[name].detach() for site in fresh.tuner.sites for part in PARTS])
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))


def test_a_dropped_stack_leaves_no_trace(tmp_path):
    base = load_base(BaseSection(model=save_tiny_base(tmp_path, "llama")), device="cpu")
    stacked, some = StackedBase(base, cache_dequantized=True), rows(3)
    bare = score_batch(stacked, some)
    for _ in range(2):  # a rejected round may be begun again under the same name
        name = stacked.begin(stack_config(STACK, StackId("chat", 1), 0), seed=1)
        stacked.fire([], train=name)
        with torch.no_grad():
            for site in stacked.tuner.sites:
                site.stack_B[name].normal_()
        stacked.fire([name])
        assert score_batch(stacked, some) != bare
        stacked.drop(name)
        assert stacked.names == ()
        assert score_batch(stacked, some) == bare
    name = stacked.begin(stack_config(STACK, StackId("code", 1), 1), seed=1)  # the next domain's, in the same process
    stacked.fire([], train=name)
    assert stacked.peft is not None
    stacked.peft(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert all(site.stack_B[name].grad.any() for site in stacked.tuner.sites)
