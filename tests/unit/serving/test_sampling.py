"""Draws: in proportion to what is likely, of what ``top_p`` leaves, the same by the same seed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.serving.sampling import Sampling, draw, nucleus


def by_definition(chance_V: torch.Tensor, top_p: float) -> set[int]:
    """The likeliest tokens in order until they have ``top_p`` together."""
    kept, mass = set(), 0.0
    for token in chance_V.argsort(descending=True, stable=True).tolist():
        if kept and mass >= top_p:
            break
        kept.add(token)
        mass += float(chance_V[token])
    return kept


@given(st.integers(0, 10_000), st.floats(0.05, 0.99), st.floats(0.1, 20))
def test_the_nucleus_is_the_fewest_tokens_that_have_top_p(seed, top_p, spread):
    logits_V = spread * torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chance_V = logits_V.softmax(0)
    kept_V = nucleus(chance_V, top_p)
    assert set(kept_V.nonzero()[:, 0].tolist()) == by_definition(chance_V, top_p)
    assert torch.equal(kept_V[kept_V > 0], chance_V[kept_V > 0])


def frequencies(logits_V: torch.Tensor, sampling: Sampling, draws: int = 20_000) -> torch.Tensor:
    generator = sampling.generator(torch.device("cpu"))
    tokens = [draw(logits_V, sampling, generator) for _ in range(draws)]
    return torch.bincount(torch.tensor(tokens), minlength=len(logits_V)) / draws


def test_draws_are_in_proportion_at_that_temperature():
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for temperature in (0.7, 1.0, 2.0):
        found = frequencies(logits_V, Sampling(temperature, 1.0, 0))
        assert torch.allclose(found, (logits_V / temperature).softmax(0), atol=0.015)  # four standard deviations


def test_what_is_outside_of_top_p_is_never_drawn():
    logits_V = torch.tensor([0.6, 0.3, 0.07, 0.03]).log()
    found = frequencies(logits_V, Sampling(1.0, 0.8, 0))
    assert found[2:].sum() == 0
    assert abs(found[0] - 2 / 3) < 0.015


def test_a_very_small_top_p_leaves_the_likeliest():
    assert frequencies(torch.tensor([1.0, 1.1, 0.9]), Sampling(1.0, 1e-9, 0), 50)[1] == 1
