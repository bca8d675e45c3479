"""Whole models: the gradient of every learning parameter, whatever is frozen beside it and whatever ran before."""

from __future__ import annotations

import pytest
import torch
from reference import replace_projections
from stack_kit import FACTORIES, add_stacks, leaves, plain_site, plain_stack, random_ids, stacked_model, tuner
from tiny import save_tiny_base
from torch.nn import functional as F

from bs_cluster.adapter_format import PARTS
from bs_cluster.base.load import load_base
from bs_cluster.config.schema import BaseSection

FROZEN = ["chat_r1", "chat_r2", "code_r1"]
LEARNING = "math_r1"


def loss_of(model, ids_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(input_ids=ids_BT).logits
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).double(), ids_BT[:, 1:].flatten())


def reference_gradients(kind: str, peft, frozen: list[str], ids_BT: torch.Tensor, cuts_gradient: bool = False):
    """(loss, {site path: {part: gradient}}) of a second model whose projections are the plain reference's."""
    stacks = tuner(peft)
    learning, sites = {}, {}
    for path, site in zip(stacks.site_names(), stacks.sites, strict=True):
        learning[path] = plain_stack(site, LEARNING, learns=True)
        plain = [plain_stack(site, name) for name in frozen]
        sites[path] = plain_site(site, [*plain, learning[path]], cuts_gradient)
    model = FACTORIES[kind]().double()
    replace_projections(model, sites)
    loss = loss_of(model, ids_BT)
    loss.backward()
    return loss, {path: {part: leaf.grad for part, leaf in leaves(stack).items()} for path, stack in learning.items()}


@pytest.mark.parametrize("kind", ["gemma3", "llama"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_gradient_of_a_whole_model_equals_the_reference(kind: str, count: int):
    frozen = FROZEN[:count]
    peft = stacked_model(kind, [*frozen, LEARNING], torch.float64)
    stacks = tuner(peft)
    stacks.fire(frozen, train=LEARNING)
    ids_BT = random_ids(2, 7)
    loss = loss_of(peft, ids_BT)
    loss.backward()
    expected_loss, expected = reference_gradients(kind, peft, frozen, ids_BT)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)  # norms and angles inside are fp32
    for path, site in zip(stacks.site_names(), stacks.sites, strict=True):
        for part in PARTS[:3]:
            gradient = getattr(site, part)[LEARNING].grad
            assert gradient.abs().max() > 0, f"{path}.{part}"
            torch.testing.assert_close(gradient, expected[path][part], rtol=1e-4, atol=1e-6)
        for name in frozen:
            assert all(getattr(site, part)[name].grad is None for part in PARTS)


@pytest.mark.parametrize("kind", ["gemma3", "llama"])
def test_a_gradient_cut_by_frozen_stacks_would_be_seen(kind: str):
    """Published flaw 1: with base and frozen stacks under no_grad, an untrained stack learns at the ends of each
    block only, o_proj and down_proj; q, k, v, gate and up get nothing."""
    peft = stacked_model(kind, [*FROZEN, LEARNING], torch.float64)
    stacks = tuner(peft)
    stacks.fire(FROZEN, train=LEARNING)
    for site in stacks.sites:
        site.stack_B[LEARNING].data.zero_()
    ids_BT = random_ids(1, 6)
    loss_of(peft, ids_BT).backward()
    _, flawed = reference_gradients(kind, peft, FROZEN, ids_BT, cuts_gradient=True)
    cut = {path.rpartition(".")[2] for path, parts in flawed.items() if not parts["stack_B"].any()}
    ours = {path: site.stack_B[LEARNING].grad for path, site in zip(stacks.site_names(), stacks.sites, strict=True)}
    assert cut == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert all(gradient.any() for gradient in ours.values())


@pytest.mark.parametrize("kind", ["gemma3", "llama"])
def test_gradient_checkpointing_changes_nothing(kind: str):
    ids_BT = random_ids(2, 8)
    gradients = []
    for checkpoint in (False, True):
        peft = stacked_model(kind, [*FROZEN, LEARNING])
        tuner(peft).fire(FROZEN, train=LEARNING)
        if checkpoint:
            peft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        peft.train()
        loss_of(peft, ids_BT).backward()
        gradients.append([p.grad for p in peft.parameters() if p.grad is not None])
        noise = [p.grad for name, p in peft.named_parameters() if f"stack_noise.{LEARNING}" in name]
        assert len(noise) == 14
        assert not any(gradient.any() for gradient in noise)  # it has no part in this, and ZeRO wants its gradient
    assert len(gradients[0]) == 4 * 14
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.fixture(scope="module")
def nf4_folder(tmp_path_factory) -> str:
    return save_tiny_base(tmp_path_factory.mktemp("nf4"), "gemma3")


def nf4_model(folder: str):
    peft = add_stacks(load_base(BaseSection(model=folder), device="cpu").model, [*FROZEN, LEARNING])
    tuner(peft).fire(FROZEN, train=LEARNING)
    return peft


def train_gradients(peft, ids_BT: torch.Tensor) -> list[torch.Tensor]:
    peft.zero_grad()
    peft.train()
    loss_of(peft, ids_BT).backward()
    peft.eval()
    return [p.grad.clone() for p in peft.parameters() if p.grad is not None]


def test_nf4_gradients_survive_an_eval_forward(nf4_folder: str):
    """bitsandbytes repacks NF4 weights in an eval forward on some CPUs and then drops the base's gradient."""
    peft, ids_BT = nf4_model(nf4_folder), random_ids(2, 16)
    before = train_gradients(peft, ids_BT)
    with torch.no_grad():
        peft(input_ids=ids_BT)
    after = train_gradients(peft, ids_BT)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert sum(bool(gradient.any()) for gradient in before) == 3 * 14


def test_cached_weights_give_the_same_bits(nf4_folder: str):
    peft, ids_BT = nf4_model(nf4_folder), random_ids(2, 16)
    with torch.no_grad():
        logits = peft(input_ids=ids_BT).logits
    gradients = train_gradients(peft, ids_BT)
    tuner(peft).cache_weights()
    with torch.no_grad():
        assert torch.equal(peft(input_ids=ids_BT).logits, logits)
    assert all(torch.equal(a, b) for a, b in zip(gradients, train_gradients(peft, ids_BT), strict=True))


def test_an_untrained_stack_changes_nothing():
    base = FACTORIES["gemma3"]()
    ids_BT = random_ids(2, 8)
    with torch.no_grad():
        before = base(input_ids=ids_BT).logits
        peft = add_stacks(base, ["chat_r1"], spread=0.0)
        assert torch.equal(peft(input_ids=ids_BT).logits, before)
