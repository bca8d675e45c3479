"""One site against the equations: outputs and every gradient, for any shape, precision, mixture and batch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from reference import balance_loss, softmax_over_largest
from stack_kit import FACTORIES, add_stacks, config, leaves, orthonormal, plain_site, plain_stack, tuner
from torch import nn

from bs_cluster.adapter_format import PARTS
from bs_cluster.basis import Basis
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.stacks.fused import Block, Learning, largest, softmax_of
from bs_cluster.stacks.fused import add_stacks as add_fused

FROZEN = ["chat_r1", "chat_r2", "code_r1"]
DOMAINS = ["chat", "code", "math"]
LEARNING = "math_r1"


class OneProjection(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


@dataclass(frozen=True)
class Case:
    rows: int
    tokens: int
    inputs: int
    outputs: int
    experts: int
    top_k: int
    rank: int
    frozen: int
    learns: bool
    bias: bool
    noise: bool
    balance: bool
    space: str
    gates: tuple[tuple[float, ...], ...] | None
    seed: int


@st.composite
def cases(draw) -> Case:
    rows, experts = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    weight = st.sampled_from([0.0, 0.0, 0.25, 1.0])
    gates = st.tuples(*[st.tuples(weight, weight, weight)] * rows)
    frozen = draw(st.sampled_from([0, 1, 3]))
    return Case(
        rows=rows,
        tokens=draw(st.integers(1, 4)),
        inputs=draw(st.integers(2, 7)),
        outputs=draw(st.integers(2, 7)),
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        rank=draw(st.integers(1, 3)),
        frozen=frozen,
        learns=draw(st.booleans()) or frozen == 0,
        bias=draw(st.booleans()),
        noise=draw(st.booleans()),
        balance=draw(st.booleans()),
        space=draw(st.sampled_from(["none", "output", "input", "both"])),
        gates=draw(st.none() | gates),
        seed=draw(st.integers(0, 2**16)),
    )


def site_of(case: Case, dtype: torch.dtype):
    torch.manual_seed(case.seed)
    names = [*FROZEN[: case.frozen], LEARNING]
    sizes = {"rank": case.rank, "experts": case.experts, "top_k": case.top_k, "alpha": 2.0}
    model = OneProjection(case.inputs, case.outputs, case.bias)
    peft = add_stacks(model, names, spread=0.5, target_modules=["proj"], task_type=None, **sizes).to(dtype)
    stacks = tuner(peft)
    stacks.fire(names[:-1], train=LEARNING if case.learns else None)
    return peft, stacks, stacks.sites[0]


@given(case=cases())
@settings(max_examples=120)
def test_outputs_and_all_gradients_equal_the_reference(case: Case):
    peft, stacks, site = site_of(case, torch.float64)
    output_K = orthonormal(case.outputs, 1, case.seed) if case.space in ("output", "both") else None
    input_K = orthonormal(case.inputs, 1, case.seed + 1) if case.space in ("input", "both") else None
    sides = [{"proj": basis} if basis is not None else {} for basis in (output_K, input_K)]
    stacks.confine(Basis(*sides))
    x = torch.randn(case.rows, case.tokens, case.inputs, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(case.rows, case.tokens, case.outputs, dtype=torch.float64)
    flat = case.rows * case.tokens
    noise_PET = torch.randn(1, case.experts, flat, dtype=torch.float64) if case.noise else None
    mask_T = (torch.rand(flat) < 0.7).double()
    load = LoadBalance(case.experts, case.top_k, 0.5, 1, torch.device("cpu")) if case.balance else None
    if load is not None:
        load.fraction_PE = torch.rand(1, case.experts)

    peft.train()
    gates_BD = torch.ones(case.rows, 3) if case.gates is None else torch.tensor(case.gates)
    with stacks.training_step(Training(noise_PET, mask_T, 10.0, load)), stacks.gates(gates_BD, DOMAINS):
        out = peft(x)
        (out * upstream).sum().backward()

    plain = []
    for name in FROZEN[: case.frozen]:
        frozen = plain_stack(site, name)
        frozen.row_weights_B = gates_BD[:, DOMAINS.index(name.split("_")[0])].double()
        plain.append(frozen)
    learning = plain_stack(site, LEARNING, learns=True)
    learning.noise_TE = noise_PET[0].t() if noise_PET is not None else None
    learning.basis_OK, learning.basis_IK = output_K, input_K
    x_ref = x.detach().clone().requires_grad_(True)
    out_ref = plain_site(site, [*plain, learning] if case.learns else [*plain, _silent(learning)])(x_ref)
    loss = (out_ref * upstream).sum()
    if case.learns and load is not None:
        logits_TE = learning.logits_TE(x_ref.reshape(flat, -1))
        loss = loss + 0.5 / 10.0 * balance_loss(logits_TE, load.fraction_PE[0].double(), case.top_k, mask_T)
    loss.backward()

    near = {"rtol": 1e-6, "atol": 1e-7}  # balance gradients pass through the fp32 of its counters
    torch.testing.assert_close(out, out_ref)
    torch.testing.assert_close(x.grad, x_ref.grad, **near)
    for part, leaf in leaves(learning).items():
        ours, theirs = getattr(site, part)[LEARNING].grad, leaf.grad
        if not case.learns:
            assert ours is None
        elif ours is None:
            assert part == "stack_noise"
            assert not case.noise
        else:
            torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, **near)
    for name in FROZEN[: case.frozen]:
        assert all(getattr(site, part)[name].grad is None for part in PARTS)


def _silent(stack):
    for leaf in leaves(stack).values():
        leaf.requires_grad_(False)
    stack.b_ERO = torch.zeros_like(stack.b_ERO)
    return stack


@given(case=cases(), dtype=st.sampled_from([(torch.float32, 2e-5), (torch.bfloat16, 3e-2)]))
@settings(max_examples=40)
def test_working_precision_stays_near_float64(case: Case, dtype: tuple[torch.dtype, float]):
    """A stack in fp32 on a bf16 or fp32 base; gates come from fp32 logits, so the same experts fire."""
    precision, tolerance = dtype
    peft, _, site = site_of(case, torch.float32)
    site.base_layer.to(precision)
    for name in FROZEN[: case.frozen]:  # what a frozen stack is, is what its block holds
        for part in ("stack_A", "stack_B"):
            getattr(site, part)[name].data = getattr(site, part)[name].data.to(precision)
    x = torch.randn(case.rows, case.tokens, case.inputs).to(precision).requires_grad_(True)
    upstream = torch.randn(case.rows, case.tokens, case.outputs).to(precision)
    out = peft(x)
    assert out.dtype == precision
    out.backward(upstream)

    learning = plain_stack(site, LEARNING, learns=True)
    plain = [plain_stack(site, name) for name in FROZEN[: case.frozen]]
    reference = plain_site(site, [*plain, learning if case.learns else _silent(learning)])
    reference.linear = nn.Linear(case.inputs, case.outputs, bias=case.bias).double()
    reference.linear.load_state_dict(site.base_layer.state_dict())
    x_ref = x.detach().double().requires_grad_(True)
    out_ref = reference(x_ref)
    out_ref.backward(upstream.double())
    assert error(out, out_ref) < tolerance
    assert error(x.grad, x_ref.grad) < 3 * tolerance
    if case.learns:
        for part in ("stack_A", "stack_B"):
            gradient = getattr(site, part)[LEARNING].grad
            assert gradient.dtype == torch.float32
            assert error(gradient, leaves(learning)[part].grad) < 5 * tolerance


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest entry or one."""
    ours, theirs = ours.detach().double(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1.0))


@pytest.mark.parametrize("wanted", ["oxabrn", "ox", "x", "abrn", "oxab", "rn"])
@pytest.mark.parametrize("frozen", [0, 2])
def test_the_fused_operation_passes_gradcheck_whatever_asks_for_a_gradient(wanted: str, frozen: int):
    torch.manual_seed(0)
    tokens, inputs, outputs, experts, rank, stacks = 5, 4, 6, 3, 2, frozen + 1
    shapes = {
        "o": (tokens, outputs),
        "x": (tokens, inputs),
        "a": (experts * rank, inputs),
        "b": (experts * rank, outputs),
        "r": (experts, inputs),
        "n": (experts, inputs),
    }
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=key in wanted) for key, s in shapes.items()]
    others_XI = torch.randn(frozen * experts * (rank + 1), inputs, dtype=torch.float64)
    others_MO = torch.randn(frozen * experts * rank, outputs, dtype=torch.float64)
    noise_ET, weights_ST = torch.rand(experts, tokens).double(), torch.rand(stacks, tokens).double()

    def site(out, x, a, b, r, n):
        read_XI = torch.cat([others_XI, *(own.detach() for own in (a, r, n))])
        block = Block(read_XI, torch.cat([others_MO, b.detach()]), experts, rank, 2, 1.5, weights_ST)
        return add_fused(out * 1.0, x, block, (a, b, r, n), Learning(noise_ET))

    assert torch.autograd.gradcheck(site, tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@given(
    logits=st.integers(1, 5).flatmap(
        lambda experts: st.lists(
            st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 1.0078125, 3.0]), min_size=experts, max_size=experts),
            min_size=1,
            max_size=12,
        )
    ),
    data=st.data(),
)
@settings(max_examples=100)
def test_just_k_experts_fire_and_of_equal_ones_the_first(dtype: torch.dtype, logits: list[list[float]], data):
    """Ties on purpose: few values, and neighbours in bf16."""
    logits_TE = torch.tensor(logits).to(dtype)
    k = data.draw(st.integers(1, logits_TE.shape[1]))
    chosen_ET = largest(logits_TE.t()[None], k)[0]
    p_TE = softmax_of(logits_TE.t()[None], chosen_ET[None])[0].t()
    expected_TE = softmax_over_largest(logits_TE.double(), k)
    assert (chosen_ET.sum(0) == k).all()
    assert torch.equal(chosen_ET.t(), expected_TE > 0)
    assert torch.equal(p_TE > 0, expected_TE > 0)
    torch.testing.assert_close(p_TE.double(), expected_TE, rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    "row", [[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [-200.0, 0.0, -200.0, -300.0]]
)
def test_ties_that_once_went_wrong_and_a_gate_that_underflows(row: list[float]):
    order = sorted(range(4), key=lambda e: (-row[e], e))
    assert largest(torch.tensor(row)[None, :, None], 2)[0, :, 0].nonzero().flatten().tolist() == sorted(order[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_router_may_start_at_zero(dtype: torch.dtype):
    """``router_init_std: 0``: forward, gradients and what is counted agree that the first two experts fire."""
    peft = get_peft_model(FACTORIES["llama"](), config(LEARNING, router_init_std=0.0), adapter_name=LEARNING)
    stacks, site = tuner(peft.to(dtype)), tuner(peft).sites[0]
    assert not site.stack_router[LEARNING].any()
    nn.init.normal_(site.stack_B[LEARNING], std=0.1)
    x_TI = torch.randn(6, site.in_features, dtype=dtype)
    plain = plain_stack(site, LEARNING, learns=True)
    load = LoadBalance(site.experts, site.top_k, 0.0, len(stacks.sites), torch.device("cpu"))
    peft.train()
    with stacks.training_step(Training(None, None, 6.0, load)):
        delta_TO = site(x_TI) - site.base_layer(x_TI)
        delta_TO.sum().backward()
    expected_TO = plain.delta(x_TI.double(), site.top_k, site.scale)
    expected_TO.sum().backward()
    close = {"rtol": 0.02, "atol": 0.02} if dtype != torch.float32 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(delta_TO.double(), expected_TO, **close)
    for part, leaf in leaves(plain).items():
        grad = getattr(site, part)[LEARNING].grad.double()
        torch.testing.assert_close(grad, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, **close)
    assert [bool(grad_RI.any()) for grad_RI in site.stack_A[LEARNING].grad] == [True, True, False]
    assert load.totals()[0, :3].tolist() == [6.0, 6.0, 0.0]


def test_routing_of_bf16_activations_loses_no_more_than_their_own_rounding():
    """Gates against float64 ones of the unrounded input: an fp32 product of the rounded input is hardly nearer."""
    generator = torch.Generator().manual_seed(0)
    x_TI, router_EI = torch.randn(512, 256, generator=generator), torch.randn(4, 256, generator=generator) / 8
    exact_ET = torch.softmax(router_EI.double() @ x_TI.double().t(), dim=0)
    rounded_ET = torch.softmax(router_EI @ x_TI.bfloat16().float().t(), dim=0)
    seen = []
    read_XI = torch.cat([torch.zeros(4, 256), router_EI]).bfloat16()
    block = Block(read_XI, torch.zeros(4, 8).bfloat16(), 4, 1, 4, 1.0)
    watch = Learning(count=lambda softmax_ET, chosen_ET: seen.append(softmax_ET))
    add_fused(torch.zeros(512, 8).bfloat16(), x_TI.bfloat16(), block, learning=watch)
    assert seen[0].dtype == torch.float32
    ours, theirs = ((gates_ET - exact_ET).square().mean().sqrt() for gates_ET in (seen[0], rounded_ET))
    assert ours < 2.5 * theirs


def test_frozen_stacks_and_eval_mode_are_without_noise():
    case = Case(1, 4, 6, 6, 4, 2, 2, 3, True, False, True, False, "none", None, 0)
    peft, stacks, _ = site_of(case, torch.float64)
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    loud = Training(torch.full((1, 4, 4), 50.0, dtype=torch.float64).cumsum(1), None, 4.0, None)
    for fire in (lambda: stacks.fire(FROZEN), lambda: stacks.fire(FROZEN, train=LEARNING)):
        fire()
        quiet = peft.eval()(x)
        with stacks.training_step(loud):
            assert torch.equal(peft(x), quiet)
    stacks.fire(FROZEN)
    with stacks.training_step(loud):
        assert torch.equal(peft.train()(x), peft.eval()(x))
    stacks.fire(FROZEN, train=LEARNING)
    with stacks.training_step(loud):
        assert not torch.equal(peft.train()(x), quiet)


def test_the_same_seed_gives_the_same_bits_noise_included():
    def gradients() -> list[torch.Tensor]:
        case = Case(2, 8, 24, 40, 4, 2, 3, 3, True, False, True, True, "none", None, 7)
        peft, stacks, site = site_of(case, torch.bfloat16)
        generator = torch.Generator().manual_seed(11)
        noise_PET = torch.randn(1, 4, 16, generator=generator)
        x = torch.randn(2, 8, 24, generator=generator).bfloat16().requires_grad_(True)
        load = LoadBalance(4, 2, 0.5, 1, torch.device("cpu"))
        load.fraction_PE = torch.tensor([[0.9, 0.5, 0.4, 0.2]])
        with stacks.training_step(Training(noise_PET, None, 16.0, load)):
            out = peft.train()(x)
            out.square().sum().backward()
        return [out, x.grad, *(getattr(site, part)[LEARNING].grad for part in PARTS), load.totals()]

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)
