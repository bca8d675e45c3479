"""The directions a domain claims, against the full SVD of everything it ever wrote."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stack_kit import largest_sine, orthonormal, plain_stack, random_ids, stacked_model, tuner

from bs_cluster.basis import combine, overlap
from bs_cluster.config.schema import NullSpaceSection
from bs_cluster.stacks.nullspace import (
    claim_limit,
    delta_energy,
    energy_along,
    energy_span,
    input_directions,
    output_directions,
    outside,
    sampled_directions,
)

OWN = ("code_r1", "code_r2")
STACKS = ["chat_r1", *OWN, "math_r1"]


def leading(rows_NO: torch.Tensor, rank: int) -> torch.Tensor:
    return torch.linalg.svd(rows_NO.double(), full_matrices=False)[2][:rank].t()


def streamed(stacks, peft, batches: list[torch.Tensor], sketch: int = 0):
    """Moments of the domain ``code`` over these batches, and every site's inputs."""
    inputs = {site.site: [] for site in stacks.sites}
    hooks = [
        site.register_forward_pre_hook(lambda site, args: inputs[site.site].append(args[0].flatten(0, 1)))
        for site in stacks.sites
    ]
    columns = (lambda site: torch.randn(site.in_features, sketch)) if sketch else None
    with torch.no_grad(), stacks.measuring(OWN, sketch=columns) as measurement:
        for ids_BT in batches:
            peft(input_ids=ids_BT)
    for hook in hooks:
        hook.remove()
    assert stacks.composition.observer is None
    return measurement.sites, {site: torch.cat(parts) for site, parts in inputs.items()}


@pytest.mark.parametrize("kind", ["gemma3", "llama"])
def test_streamed_directions_equal_the_svd_of_all_token_deltas(kind: str):
    """Of this domain's stacks alone, though others fire beside them and stand around them in the block."""
    peft = stacked_model(kind, STACKS, torch.float64).eval()
    stacks = tuner(peft)
    moments, inputs = streamed(stacks, peft, [random_ids(3, 15, seed) for seed in range(3)])
    for site in stacks.sites:
        deltas_TO = torch.stack(
            [plain_stack(site, name).delta(inputs[site.site], site.top_k, site.scale) for name in OWN]
        ).sum(0)
        b_MO = site.written(OWN)
        found_OK = output_directions(moments[site.site].c_MM, b_MO, max_rank=8, energy=1.0)
        assert largest_sine(found_OK, leading(deltas_TO, 8)) < 1e-4
        torch.testing.assert_close(found_OK.t() @ found_OK, torch.eye(8))


def test_two_workers_sum_to_one():
    peft = stacked_model("llama", STACKS, torch.float64).eval()
    stacks = tuner(peft)
    batches = [random_ids(2, 9, seed) for seed in range(4)]
    torch.manual_seed(0)
    whole, _ = streamed(stacks, peft, batches, sketch=12)
    torch.manual_seed(0)
    first, _ = streamed(stacks, peft, batches[::2], sketch=12)
    torch.manual_seed(0)
    second, _ = streamed(stacks, peft, batches[1::2], sketch=12)
    for site in stacks.sites:
        sums = [a + b for a, b in zip(first[site.site].tensors(), second[site.site].tensors(), strict=True)]
        for ours, total in zip(sums, whole[site.site].tensors(), strict=True):
            torch.testing.assert_close(ours, total, rtol=1e-5, atol=1e-5)


def energies(stacks, peft, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """What two groups write and what is read, over these batches."""
    sites = zip(stacks.site_names(), stacks.sites, strict=True)
    directions = {path: orthonormal(site.in_features, 3, 0) for path, site in sites}
    groups = {"code": OWN, "math": ("math_r1",)}
    with torch.no_grad(), stacks.measuring_writes(groups) as writes:
        for ids_BT in batches:
            peft(input_ids=ids_BT)
    with torch.no_grad(), stacks.measuring_reads(directions) as reads:
        for ids_BT in batches:
            peft(input_ids=ids_BT)
    return [*writes.tensors(), *reads.tensors()]


def test_energies_of_two_workers_sum_to_one():
    peft = stacked_model("llama", STACKS, torch.float64).eval()
    batches = [random_ids(2, 9, seed) for seed in range(4)]
    whole, first, second = (energies(tuner(peft), peft, part) for part in (batches, batches[::2], batches[1::2]))
    for total, a, b in zip(whole, first, second, strict=True):
        assert (total > 0).all()
        torch.testing.assert_close(a + b, total, rtol=1e-12, atol=0)


def test_only_stacks_that_fire_can_be_measured():
    stacks = tuner(stacked_model("llama", STACKS))
    stacks.fire(["chat_r1"])
    with pytest.raises(KeyError, match="code_r1"), stacks.measuring(OWN):
        pass
    with pytest.raises(KeyError, match="code_r1"), stacks.measuring_writes({"chat": ["chat_r1"], "code": OWN}):
        pass


def test_energy_and_max_rank_bound_the_claim():
    q_OK = orthonormal(20, 4, 0)
    b_MO = q_OK.t()  # four orthonormal rows
    c_MM = torch.diag(torch.tensor([90.0, 9.0, 0.9, 0.1], dtype=torch.float64))
    ranks = {e: output_directions(c_MM, b_MO, max_rank=64, energy=e).shape[1] for e in (0.5, 0.9, 0.95, 0.99, 0.995, 1)}
    assert ranks == {0.5: 1, 0.9: 1, 0.95: 2, 0.99: 2, 0.995: 3, 1: 4}
    assert output_directions(c_MM, b_MO, max_rank=3, energy=1.0).shape == (20, 3)
    assert largest_sine(output_directions(c_MM, b_MO, max_rank=2, energy=1.0), q_OK[:, :2]) < 1e-7
    assert output_directions(torch.zeros_like(c_MM), b_MO, max_rank=8, energy=0.99).shape == (20, 0)
    assert output_directions(c_MM, torch.zeros(4, 20), max_rank=8, energy=0.99).shape == (20, 0)


@pytest.mark.parametrize("width", [256, 640, 1024, 2048, 3840, 4096, 15360])
@pytest.mark.parametrize("max_rank", [16, 64])
def test_fifty_domains_find_room_at_every_width(width: int, max_rank: int):
    """With the defaults; without a share the fifth domain of rank 64 finds nothing at a width of 256."""
    share, claimed, claims = NullSpaceSection().max_share, 0, []
    while (limit := claim_limit(width, claimed, max_rank=max_rank, max_share=share)) > 0:
        claimed += limit
        claims.append(limit)
    assert claims == sorted(claims, reverse=True)
    assert claims[0] == min(max_rank, width // 16)
    assert len(claims) >= 67
    assert sum(claims) == width
    assert width - sum(claims[:49]) >= 0.04 * width  # what the fiftieth domain may still learn in


def test_a_claim_takes_no_more_than_there_is():
    assert claim_limit(256, 255, max_rank=64, max_share=0.0625) == 1
    assert claim_limit(256, 256, max_rank=64, max_share=0.0625) == 0
    assert [claim_limit(256, 64 * n, max_rank=64, max_share=1.0) for n in range(5)] == [64, 64, 64, 64, 0]


@given(
    width=st.sampled_from([12, 40, 128]),
    rows=st.integers(1, 24),
    max_rank=st.integers(1, 16),
    domains=st.integers(2, 6),
    shared=st.floats(0, 1),
    side=st.sampled_from(["output", "input", "sampled"]),
    seed=st.integers(0, 1000),
)
@example(width=12, rows=3, max_rank=2, domains=2, shared=1.0, side="sampled", seed=0)  # one direction left for two
@settings(max_examples=120)
def test_claims_taken_outside_of_earlier_ones_are_orthogonal_and_add_up(
    width, rows, max_rank, domains, shared, side, seed
):
    """Though domains write and read much alike (``shared``), up to the same space altogether."""
    generator = torch.Generator().manual_seed(seed)
    common_MX = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    claims: list[torch.Tensor] = []
    for _ in range(domains):
        own_MX = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        z_TM = torch.randn(60, rows, generator=generator, dtype=torch.float64)
        b_MX = shared * common_MX + (1 - shared) * own_MX
        earlier = combine(claims) if claims else None
        held = 0 if earlier is None else earlier.shape[1]
        room = min(max_rank, width - held)
        if side == "output":
            claim = output_directions(z_TM.t() @ z_TM, b_MX, max_rank=room, energy=0.99, earlier_OK=earlier)
        elif side == "sampled":
            claim = sampled_directions(z_TM, b_MX, max_rank=min(room, rows), earlier_OK=earlier)
        else:
            x_TI = (z_TM @ b_MX).float()
            omega_IQ = outside(torch.randn(width, min(width, 24), generator=generator), earlier).float()
            sketch_IQ = x_TI.t() @ (x_TI @ omega_IQ)
            claim = input_directions(sketch_IQ, omega_IQ, max_rank=room, energy=0.99, earlier_IK=earlier)
        torch.testing.assert_close(claim.t() @ claim, torch.eye(claim.shape[1]), rtol=1e-5, atol=1e-5)
        assert all(overlap(claim, other) < 1e-10 for other in claims)
        claims.append(claim)
    assert combine(claims).shape[1] == sum(claim.shape[1] for claim in claims)


@pytest.mark.parametrize("columns", [12, 40])
def test_the_input_claim_outside_is_that_of_projected_inputs(columns: int):
    """No token is projected, but the directions are those of ``x (I − VVᵀ)``: of what is left, not of what is gone."""
    torch.manual_seed(0)
    x_TI = torch.randn(500, 40) * 0.7 ** torch.arange(40) @ orthonormal(40, 40, 3, torch.float32).t()
    earlier_IK = leading(x_TI, 3).float()
    omega_IQ = outside(torch.randn(40, columns), earlier_IK).float()
    sketch_IQ = x_TI.t() @ (x_TI @ omega_IQ)
    found = input_directions(sketch_IQ, omega_IQ, max_rank=3, energy=1.0, earlier_IK=earlier_IK)
    left_TI = x_TI - (x_TI @ earlier_IK) @ earlier_IK.t()
    assert largest_sine(found, leading(left_TI, 3)) < (1e-2 if columns < 40 else 1e-3)


def test_where_all_is_claimed_nothing_more_is():
    torch.manual_seed(0)
    span_OK = orthonormal(30, 5, 1)
    b_MO, z_TM = torch.randn(8, 5, dtype=torch.float64) @ span_OK.t(), torch.randn(50, 8, dtype=torch.float64)
    earlier = span_OK.float()
    assert output_directions(z_TM.t() @ z_TM, b_MO, max_rank=4, energy=0.99, earlier_OK=earlier).shape == (30, 0)
    x_TI, omega_IQ = (z_TM @ b_MO).float(), outside(torch.randn(30, 12), earlier).float()
    sketch_IQ = x_TI.t() @ (x_TI @ omega_IQ)
    assert input_directions(sketch_IQ, omega_IQ, max_rank=4, energy=0.99, earlier_IK=earlier).shape == (30, 0)


@given(width=st.sampled_from([6, 40]), rows=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_a_span_by_small_matrices_is_that_of_the_svd(width: int, rows: int, rank: int, seed: int):
    """And energies by them are those of all deltas, though rows of B depend on each other (``rank``)."""
    generator = torch.Generator().manual_seed(seed)
    z_TM, left_MR, right_RO = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((80, rows), (rows, min(rank, rows)), (min(rank, rows), width))
    )
    b_MO, c_MM = left_MR @ right_RO, z_TM.t() @ z_TM
    deltas_TO = z_TM @ b_MO
    _, s, vh = torch.linalg.svd(deltas_TO, full_matrices=False)
    held = int((torch.cumsum(s**2, 0) / (s**2).sum() < 0.99).sum()) + 1
    span_OK = b_MO.t() @ energy_span(c_MM, b_MO, energy=0.99)
    torch.testing.assert_close(span_OK.t() @ span_OK, torch.eye(held, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert largest_sine(span_OK, vh[:held].t()) < 1e-5
    assert delta_energy(c_MM, b_MO) == pytest.approx(float(deltas_TO.square().sum()), rel=1e-9)
    some_OK = orthonormal(width, min(3, width), seed)
    expected = float((deltas_TO @ some_OK).square().sum())
    assert energy_along(c_MM, b_MO, some_OK) == pytest.approx(expected, rel=1e-9)


def test_more_rank_rows_than_output_features():
    torch.manual_seed(0)
    z_TM, b_MO = torch.randn(200, 24, dtype=torch.float64), torch.randn(24, 10, dtype=torch.float64)
    found = output_directions(z_TM.t() @ z_TM, b_MO, max_rank=4, energy=1.0)
    assert largest_sine(found, leading(z_TM @ b_MO, 4)) < 1e-6


@pytest.mark.parametrize("inputs", [64, 200])
@pytest.mark.parametrize("columns", [24, 64])
def test_the_input_sketch_finds_the_leading_directions(inputs: int, columns: int):
    """A decaying spectrum, as activations have; with as many columns as inputs the sketch is exact."""
    torch.manual_seed(1)
    spectrum_I = 0.8 ** torch.arange(inputs)
    x_TI = torch.randn(2000, inputs) * spectrum_I @ orthonormal(inputs, inputs, 3, torch.float32).t()
    omega_IQ = torch.randn(inputs, columns)
    sketch_IQ = torch.zeros(inputs, columns)
    for part in x_TI.split(100):
        sketch_IQ += part.t() @ (part @ omega_IQ)
    found = input_directions(sketch_IQ, omega_IQ, max_rank=8, energy=1.0)
    assert largest_sine(found, leading(x_TI, 8)) < 1e-2


@given(
    width=st.sampled_from([8, 64, 200]),
    true_rank=st.integers(1, 64),
    loud=st.sampled_from([1.0, 1e3, 1e5]),
    batches=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_the_input_sketch_survives_few_directions_and_massive_activations(width, true_rank, loud, batches, seed):
    """Fewer directions than columns and one channel far louder than the rest, as in real models' hidden states:
    the sum in fp32 is then not positive definite to working precision."""
    generator = torch.Generator().manual_seed(seed)
    columns = min(80, width)
    span_KI = torch.randn(min(true_rank, width), width, generator=generator)
    omega_IQ = torch.randn(width, columns, generator=generator)
    sketch_IQ = torch.zeros(width, columns)
    for _ in range(batches):
        x_TI = torch.randn(30, span_KI.shape[0], generator=generator) @ span_KI
        x_TI[:, 0] *= loud
        sketch_IQ += x_TI.t() @ (x_TI @ omega_IQ)
    found = input_directions(sketch_IQ, omega_IQ, max_rank=64, energy=0.99)
    assert 1 <= found.shape[1] <= min(64, width)
    torch.testing.assert_close(found.t() @ found, torch.eye(found.shape[1]), rtol=1e-4, atol=1e-4)


def test_an_input_that_never_came_claims_nothing():
    assert input_directions(torch.zeros(10, 4), torch.randn(10, 4), max_rank=4, energy=0.99).shape == (10, 0)


def test_the_papers_sampling_can_miss_what_the_exact_way_finds():
    """Token means hide a direction that half of the tokens write with one sign and half with the other."""
    z_TM = torch.zeros(400, 2, dtype=torch.float64)
    z_TM[:, 0] = torch.where(torch.arange(400) % 2 == 0, 5.0, -5.0)
    z_TM[:, 1] = 0.1
    b_MO = torch.eye(6, dtype=torch.float64)[:2]
    exact = output_directions(z_TM.t() @ z_TM, b_MO, max_rank=1, energy=0.99)
    means_NM = z_TM.view(10, 40, 2).mean(1)
    sampled = sampled_directions(means_NM, b_MO, max_rank=1)
    truth = leading(z_TM @ b_MO, 1)
    assert largest_sine(exact, truth) < 1e-7
    assert largest_sine(sampled, truth) > 0.99


def test_sampled_directions_are_orthonormal_and_find_a_clear_subspace():
    torch.manual_seed(0)
    means_NM = torch.randn(50, 3, dtype=torch.float64)
    b_MO = torch.randn(3, 12, dtype=torch.float64)
    sampled = sampled_directions(means_NM, b_MO, max_rank=3)
    assert largest_sine(sampled, leading(means_NM @ b_MO, 3)) < 1e-3
    torch.testing.assert_close(sampled.t() @ sampled, torch.eye(3), rtol=1e-4, atol=1e-4)
    assert sampled_directions(torch.zeros(5, 3), b_MO, max_rank=3).shape == (12, 0)
