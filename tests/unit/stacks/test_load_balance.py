"""The load-balance gradient against the written-out loss with f held fixed, and what it does to a skewed router."""

from __future__ import annotations

import pytest
import torch
from reference import balance_loss
from stack_kit import random_ids, stacked_model, tuner

from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.stacks.model import StackModel

LEARNING = "chat_r1"
COEFFICIENT = 0.3


def learner(dtype: torch.dtype = torch.float64):
    peft = stacked_model("llama", [LEARNING], dtype).train()
    stacks = tuner(peft)
    stacks.fire([], train=LEARNING)
    return peft, stacks


def balance_of(stacks: StackModel, coefficient: float = COEFFICIENT) -> LoadBalance:
    site = stacks.sites[0]
    return LoadBalance(site.experts, site.top_k, coefficient, len(stacks.sites), torch.device("cpu"))


def step(peft, ids_BT: torch.Tensor, mask_BT: torch.Tensor, tokens: float, load: LoadBalance | None) -> None:
    """One micro-batch without a task loss: only the balance reaches the routers."""
    with tuner(peft).training_step(Training(None, mask_BT.flatten(), tokens, load)):
        (peft(input_ids=ids_BT).logits * 0.0).sum().backward()


def router_gradients(stacks: StackModel) -> list[torch.Tensor]:
    return [site.stack_router[LEARNING].grad.clone() for site in stacks.sites]


def test_the_routers_gradient_is_that_of_the_written_out_loss():
    """With B at zero, as a stack starts, no site's balance gradient passes through another site's router."""
    peft, stacks = learner()
    for site in stacks.sites:
        site.stack_B[LEARNING].data.zero_()
    load = balance_of(stacks)
    load.fraction_PE = torch.rand(load.fraction_PE.shape)
    ids_BT = random_ids(2, 8)
    mask_BT = torch.ones(2, 8, dtype=torch.float64)
    mask_BT[1, 5:] = 0
    inputs = {}
    hooks = [s.register_forward_pre_hook(lambda s, args: inputs.__setitem__(s.site, args[0])) for s in stacks.sites]
    step(peft, ids_BT, mask_BT, 13.0, load)
    for hook in hooks:
        hook.remove()
    for site in stacks.sites:
        router_EI = site.stack_router[LEARNING].detach().clone().requires_grad_(True)
        logits_TE = inputs[site.site].detach().flatten(0, 1) @ router_EI.t()
        loss = balance_loss(logits_TE, load.fraction_PE[site.site].double(), site.top_k, mask_BT.flatten())
        (COEFFICIENT / len(stacks.sites) / 13.0 * loss).backward()
        ours = site.stack_router[LEARNING].grad
        torch.testing.assert_close(ours, router_EI.grad, rtol=1e-6, atol=1e-9)
        assert ours.abs().max() > 0  # published flaw 2: no gradient at all


def test_the_first_step_with_balanced_fractions_has_no_gradient():
    peft, stacks = learner()
    step(peft, random_ids(2, 8), torch.ones(2, 8), 16.0, balance_of(stacks))
    assert all(gradient.abs().max() < 1e-8 for gradient in router_gradients(stacks))


def test_padding_neither_counts_nor_pulls():
    """Whatever stands at masked positions, counters and gradients are those of the real tokens."""
    fraction_PE = torch.rand(14, 3)
    mask_BT = torch.ones(2, 8)
    mask_BT[:, 6:] = 0
    results = []
    for filler in (7, 250):
        peft, stacks = learner()
        load = balance_of(stacks)
        load.fraction_PE = fraction_PE
        ids_BT = random_ids(2, 8)
        ids_BT[:, 6:] = filler  # after the real tokens, so that causal attention hides them
        step(peft, ids_BT, mask_BT, 12.0, load)
        results.append((load.totals(), router_gradients(stacks)))
    (totals, gradients), (other_totals, other_gradients) = results
    assert totals[:, -1].tolist() == [12.0] * 14
    torch.testing.assert_close(totals, other_totals)
    for a, b in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_two_micro_batches_add_up_to_one():
    fraction_PE, ids_BT = torch.rand(14, 3), random_ids(4, 8)
    whole, stacks = learner()
    load = balance_of(stacks)
    load.fraction_PE = fraction_PE
    step(whole, ids_BT, torch.ones(4, 8), 32.0, load)

    halves, other = learner()
    parts = balance_of(other)
    parts.fraction_PE = fraction_PE
    for half in ids_BT.split(2):
        step(halves, half, torch.ones(2, 8), 32.0, parts)
    torch.testing.assert_close(parts.totals(), load.totals())
    for a, b in zip(router_gradients(other), router_gradients(stacks), strict=True):
        torch.testing.assert_close(a, b)
    assert parts.finish_step(parts.totals()) == pytest.approx(load.finish_step(load.totals()))
    torch.testing.assert_close(parts.fraction_PE, load.fraction_PE)


def test_a_finished_step_reports_the_loss_and_starts_over():
    load = LoadBalance(4, 2, 0.01, 1, torch.device("cpu"))
    probs_TE = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
    gates_TE = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0]])
    load.count(0, probs_TE.t(), gates_TE.t() > 0, None)
    loss, imbalance = load.finish_step(load.totals())
    assert loss == pytest.approx(2 * (0.55 + 0.2))  # N/k (P_1 f_1 + P_2 f_2), f = 1, 1, 0, 0
    assert imbalance == pytest.approx(2.0)  # N/k times the fullest expert's share
    assert load.fraction_PE.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    assert not load.totals().any()
    balanced = LoadBalance(4, 4, 0.01, 1, torch.device("cpu"))
    balanced.count(0, torch.full((4, 5), 0.25), torch.ones(4, 5, dtype=torch.bool), None)
    assert balanced.finish_step(balanced.totals()) == pytest.approx((1.0, 1.0))


def test_it_evens_out_a_skewed_start():
    peft, stacks = learner(torch.float32)
    ids_BT = random_ids(4, 12)
    skew = {}
    hooks = [s.register_forward_pre_hook(lambda s, args: skew.__setitem__(s.site, args[0])) for s in stacks.sites]
    with torch.no_grad():
        peft(input_ids=ids_BT)
        for site in stacks.sites:  # expert 0 and 1 always win: their routers point along the mean input
            mean_I = skew[site.site].flatten(0, 1).mean(0)
            site.stack_router[LEARNING].mul_(0.1)
            site.stack_router[LEARNING][:2] += mean_I / mean_I.square().sum()
    for hook in hooks:
        hook.remove()
    load = balance_of(stacks, coefficient=1.0)
    optimizer = torch.optim.AdamW([site.stack_router[LEARNING] for site in stacks.sites], lr=2e-3)
    losses, spread = [], []
    for _ in range(50):
        optimizer.zero_grad()
        step(peft, ids_BT, torch.ones(4, 12), 48.0, load)
        loss, _ = load.finish_step(load.totals())
        losses.append(loss)
        spread.append(float(load.fraction_PE.std(dim=1).mean()))
        optimizer.step()
    assert losses[0] > 1.1
    assert losses[-1] < 1 + 0.4 * (losses[0] - 1)
    assert spread[-1] < 0.6 * spread[0]


def test_evaluation_counts_nothing():
    peft, stacks = learner()
    load = balance_of(stacks)
    with stacks.training_step(Training(None, None, 8.0, load)), torch.no_grad():
        peft.eval()(input_ids=random_ids(1, 8))
    peft.train()(input_ids=random_ids(1, 8))
    assert not load.totals().any()
