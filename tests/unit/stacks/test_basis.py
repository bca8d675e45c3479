"""A basis as bytes, what claims make together, and how much room they leave."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stack_kit import largest_sine, orthonormal

from bs_cluster.basis import Basis, combine, overlap


def directions(width: int, rank: int, seed: int = 0) -> torch.Tensor:
    return orthonormal(width, rank, seed, torch.float32)


def test_a_basis_round_trips_and_equal_bases_give_equal_bytes():
    basis = Basis({"b": directions(6, 2), "a": directions(6, 1)}, {"a": directions(4, 1).t().t()})
    same = Basis(dict(reversed(basis.output.items())), basis.input)
    assert basis.to_bytes() == same.to_bytes()
    assert basis.digest == same.digest != Basis(basis.output).digest
    back = Basis.from_bytes(basis.to_bytes())
    assert back.to_bytes() == basis.to_bytes()
    assert (back.output.keys(), back.input.keys()) == ({"a", "b"}, {"a"})
    assert torch.equal(back.output["b"], basis.output["b"])


def test_a_site_path_may_hold_anything_but_does_not_choose_the_side():
    basis = Basis({"input:model.q_proj": directions(6, 2)})
    assert Basis.from_bytes(basis.to_bytes()).output.keys() == {"input:model.q_proj"}


def test_combined_claims_keep_sides_and_sites_apart():
    one = Basis({"a": directions(16, 3, 1)}, {"a": directions(12, 2, 2)})
    two = Basis({"a": directions(16, 4, 3), "b": directions(16, 1, 4)})
    both = Basis.combine([one, two])
    assert {(side, path): basis_XK.shape for side, path, basis_XK in both.entries()} == {
        ("output", "a"): (16, 7),
        ("output", "b"): (16, 1),
        ("input", "a"): (12, 2),
    }
    assert torch.equal(both.output["a"], combine([one.output["a"], two.output["a"]]))
    assert Basis.combine([]).to_bytes() == Basis().to_bytes()


def test_shares_are_those_of_the_fullest_site_of_each_width_whichever_side():
    empty = torch.zeros
    basis = Basis({"a": empty(10, 2), "b": empty(10, 5), "c": empty(4, 1), "d": empty(8, 0)}, {"c": empty(4, 3)})
    assert basis.claimed_share() == {"10": 0.5, "4": 0.75, "8": 0.0}
    assert basis.free_shares(["a", "b", "c", "d", "untouched"]) == [0.8, 0.5, 0.25, 1.0, 1.0]
    assert basis.mean_rank == pytest.approx(11 / 5)
    assert Basis().claimed_share() == {}
    assert Basis().mean_rank == 0.0


def test_overlap_of_bases_is_the_mean_over_what_both_have():
    axes = torch.eye(6)
    one = Basis({"a": axes[:, :2], "b": axes[:, :2], "only": axes}, {"a": axes[:, :1]})
    two = Basis({"a": axes[:, :2], "b": axes[:, 2:4]}, {"a": axes[:, :1]})
    assert one.overlap(two) == pytest.approx(2 / 3)
    assert one.overlap(Basis()) == 0.0


@given(widths=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_combined_bases_are_orthonormal_and_span_every_claim(widths: list[int], seed: int):
    claims = [orthonormal(16, width, seed + i, torch.float32) for i, width in enumerate(widths)]
    combined_OK = combine(claims)
    assert combined_OK.shape == (16, min(16, sum(widths)))
    torch.testing.assert_close(combined_OK.t() @ combined_OK, torch.eye(combined_OK.shape[1]), rtol=1e-5, atol=1e-5)
    for claim_OK in claims:
        torch.testing.assert_close(combined_OK @ (combined_OK.t() @ claim_OK), claim_OK, rtol=1e-3, atol=1e-3)


def test_a_direction_claimed_twice_counts_once():
    basis_OK = orthonormal(12, 3, 0, torch.float32)
    combined = combine([basis_OK, basis_OK[:, :2], -basis_OK[:, 2:]])
    assert combined.shape == (12, 3)
    assert largest_sine(combined, basis_OK) < 1e-6


def test_overlap_of_spaces_made_by_hand():
    axes = torch.eye(6)
    assert overlap(axes[:, :2], axes[:, 2:4]) == 0.0
    assert overlap(axes[:, :2], axes[:, :4]) == pytest.approx(1.0)
    assert overlap(axes[:, :2], axes[:, 1:3]) == pytest.approx(0.5)
    assert overlap(axes[:, :0], axes) == 0.0
    tilted = torch.stack([torch.cos(torch.tensor(0.3)), torch.sin(torch.tensor(0.3))])[:, None]
    assert overlap(torch.eye(2)[:, :1], tilted) == pytest.approx(torch.cos(torch.tensor(0.3)).item() ** 2)
