"""A stack with frozen gates is a LoRA: exact where gates are constant, their mean where they are not, the best of a
lower rank where it is compressed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from reference import PlainSite  # noqa: F401  # what gates are is written out there once
from stack_kit import FACTORIES, plain_stack, random_ids, stacked_model, tuner

from bs_cluster.stacks.fixed_gates import lora_factors, recompressed

NAMES = ["chat_r1", "chat_r2"]
IDS = random_ids(3, 11)


@torch.no_grad()
def logits(peft) -> torch.Tensor:
    return peft.eval()(input_ids=IDS).logits


def lora_of(peft, gates) -> torch.nn.Module:
    """A fresh base with the stacks of ``peft`` on it as PEFT's own LoRA, under these gates by stack and site."""
    stacks = tuner(peft)
    rank = len(gates) * stacks.sites[0].experts * stacks.sites[0].rank
    plain = get_peft_model(
        FACTORIES["llama"](),
        LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(stacks.target_module_mapping["llama"])),
    )
    for p, (path, site) in enumerate(zip(stacks.site_names(), stacks.sites, strict=True)):
        parts = [
            lora_factors(site.stack_A[n].detach(), site.stack_B[n].detach(), g[p], site.scale) for n, g in gates.items()
        ]
        layer = plain.base_model.model.get_submodule(path)
        layer.lora_A["default"].weight.data = torch.cat([a for a, _ in parts])
        layer.lora_B["default"].weight.data = torch.cat([b for _, b in parts], dim=1)
    return plain


@torch.no_grad()
def measured(peft, names=NAMES):
    with tuner(peft).measuring_gates(names) as gates:
        logits(peft)
    return gates


def test_with_constant_gates_the_lora_is_the_stacks():
    """All experts fire and the router is zero: every gate is 1/E for every token."""
    peft = stacked_model("llama", NAMES, top_k=3)
    for site in tuner(peft).sites:
        for name in NAMES:
            site.stack_router[name].data.zero_()
    gates = measured(peft)
    means = {name: gates.mean_PE(name) for name in NAMES}
    torch.testing.assert_close(means["chat_r1"], torch.full_like(means["chat_r1"], 1 / 3))
    torch.testing.assert_close(logits(lora_of(peft, means)), logits(peft), rtol=1e-5, atol=1e-5)


def test_measured_gates_are_the_mean_of_each_tokens_own():
    peft = stacked_model("llama", NAMES)
    seen = {}

    def keep(site, inputs):
        seen[site.site] = inputs[0].detach()

    hooks = [site.register_forward_pre_hook(keep) for site in tuner(peft).sites]
    gates = measured(peft)
    for hook in hooks:
        hook.remove()
    for name in NAMES:
        for p, site in enumerate(tuner(peft).sites):
            router_EI = plain_stack(site, name).router_EI
            logits_TE = seen[p].flatten(0, 1).double() @ router_EI.t()
            kept = torch.full_like(logits_TE, -torch.inf).scatter(
                1, (top := logits_TE.topk(site.top_k)).indices, top.values
            )
            torch.testing.assert_close(gates.mean_PE(name)[p], kept.softmax(1).mean(0), rtol=1e-4, atol=1e-5)
    assert gates.tokens_P.tolist() == [IDS.numel()] * len(tuner(peft).sites)


def test_gates_that_depend_on_the_token_are_not_a_lora():
    """Else the loss that an export measures would always be zero."""
    peft = stacked_model("llama", NAMES)
    gates = measured(peft)
    lora = lora_of(peft, {name: gates.mean_PE(name) for name in NAMES})
    assert (logits(lora) - logits(peft)).abs().max() > 1e-3


def test_gates_are_measured_beside_domain_gate_weights_and_without_them():
    peft = stacked_model("llama", ["chat_r1", "math_r1"])
    with tuner(peft).gates(torch.tensor([[0.5]] * len(IDS)), ("chat",)):
        gates = measured(peft, ["chat_r1", "math_r1"])
    torch.testing.assert_close(gates.mean_PE("chat_r1").sum(1), torch.ones(len(tuner(peft).sites), dtype=torch.float64))
    assert gates.mean_PE("math_r1").abs().max() == 0  # it was off


def drawn(rows: int, wide: int, high: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    a_MI = torch.randn(rows, wide, generator=generator, dtype=torch.float64)
    b_OM = torch.randn(high, rows, generator=generator, dtype=torch.float64)
    return a_MI, b_OM


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 9), wide=st.integers(1, 8), high=st.integers(1, 8), seed=st.integers(0, 999), data=st.data())
def test_of_all_matrices_of_a_rank_the_nearest(rows, wide, high, seed, data):
    """Eckart and Young: what is left is the root of the sum of the squared singular values that were dropped."""
    a_MI, b_OM = drawn(rows, wide, high, seed)
    rank = data.draw(st.integers(1, rows))
    small_a, small_b = recompressed(a_MI, b_OM, rank)
    assert (small_a.shape, small_b.shape) == ((rank, wide), (high, rank))
    dropped = torch.linalg.svdvals(b_OM @ a_MI)[rank:]
    left = torch.linalg.matrix_norm(b_OM @ a_MI - small_b @ small_a)
    assert float(left) == pytest.approx(float(dropped.square().sum().sqrt()), abs=1e-9)


def test_compressed_to_its_own_rank_nothing_is_lost():
    a_MI, b_OM = (tensor.float() for tensor in drawn(6, 40, 30, 0))
    small_a, small_b = recompressed(a_MI, b_OM, 6)
    torch.testing.assert_close(small_b @ small_a, b_OM @ a_MI, rtol=1e-5, atol=1e-5)
    assert small_a.dtype == torch.float32
