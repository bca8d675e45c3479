"""Familiar prompts are served their gates, strangers a quarter of them."""

import numpy as np
from worlds import DOMAINS, anchor_of, anchored, features

from bs_cluster.router.familiar import Kinds, familiarity
from bs_cluster.router.learned import Gates, gate_inputs
from bs_cluster.router.routers import PASSERS_PART, STRANGERS_PART
from bs_cluster.sweep.combinations import all_masks


def familiar(anchor, states, kinds: Kinds | None = None) -> np.ndarray:
    prompts = gate_inputs(anchor, states)
    return familiarity(anchor, kinds or anchored(anchor).kinds, prompts.directions_BK, prompts.similarity_BD)


def kinds_of(anchor, rows: int, *owners: str) -> Kinds:
    states = np.concatenate([features(owner, rows, seed=8) for owner in owners])
    return Kinds.of(anchor, anchor.directions(states), [owner for owner in owners for _ in range(rows)])


def test_a_domain_s_prompts_are_at_home_and_others_strangers():
    anchor = anchor_of()
    for domain in DOMAINS:
        own_B = familiar(anchor, features(domain, 200, seed=6))
        assert (own_B == 0).mean() < 0.08  # the limit is the 2 % quantile of held-out prompts
        assert (own_B == 1).mean() > 0.8  # and home their 10 % quantile
    for kind in range(6):
        assert (familiar(anchor, features(f"foreign:{kind}", 100, seed=5)) == 0).mean() > 0.95


def test_a_mixed_kind_has_a_home_and_a_foreign_one_none():
    anchor = anchor_of()
    kinds = kinds_of(anchor, 30, "mixed:chat_math", "foreign:1", "chat")
    assert len(kinds.kind_limit_J) == 1
    like, unlike = (features(owner, 200, seed=9) for owner in ("mixed:chat_math", "mixed:chat_code"))
    assert familiar(anchor, like).mean() < 0.3
    assert (familiar(anchor, like, kinds) == 1).mean() > 0.75
    assert familiar(anchor, unlike, kinds).mean() < 0.3
    assert familiar(anchor, features("foreign:1", 100, seed=9), kinds).max() == 0


def test_rows_of_one_pattern_reach_as_far_as_a_domain_does():
    """A kind whose rows are all but the same leaves none of its like outside."""
    anchor = anchor_of()
    pattern_K = anchor.directions(features("mixed:chat_math", 1, seed=8))
    kinds = Kinds.of(anchor, pattern_K.repeat(12, axis=0), ["mixed:chat_math"] * 12)
    np.testing.assert_allclose(kinds.kind_limit_J, anchor.limit_D.mean(), rtol=1e-6)
    np.testing.assert_allclose(kinds.kind_home_J, anchor.home_D.mean(), rtol=1e-6)


def test_a_kind_of_few_rows_is_not_known():
    anchor = anchor_of()
    assert len(kinds_of(anchor, 4, "mixed:chat_math").kind_limit_J) == 0
    assert len(kinds_of(anchor, 5, "mixed:chat_math", "mixed:chat_code").kind_limit_J) == 2


def test_it_is_the_same_a_part_at_a_time(monkeypatch):
    anchor, states = anchor_of(), np.concatenate([features(name, 15, seed=3) for name in (*DOMAINS, "mixed:chat_code")])
    kinds = kinds_of(anchor, 30, "mixed:chat_math", "mixed:chat_code")
    whole = familiar(anchor, states, kinds)
    assert 0 < whole.mean() < 1
    monkeypatch.setattr("bs_cluster.router.anchor.COSINES", 200)
    np.testing.assert_allclose(familiar(anchor, states, kinds), whole, atol=1e-5)


def test_strangers_are_served_a_quarter_of_their_gates_and_who_is_between_a_half_or_more():
    anchor = anchor_of()
    states = np.concatenate([features(owner, 60, seed=5) for owner in (*DOMAINS, "foreign:1", "foreign:2")])
    sure = Gates(np.zeros((gate_inputs(anchor, states).inputs_BP.shape[1], 3)), everywhere=True)
    sure.weight_PD[-1] = (9.0, -9.0, -9.0)  # the constant input: all prompts are chat's
    familiar_B = familiar(anchor, states)
    gates_BD = anchored(anchor, sure).gates(list(states), list(all_masks(3)))
    assert (gates_BD[familiar_B == 1, 0] == 1).all()
    assert (gates_BD[familiar_B == 0, 0] == STRANGERS_PART).all()
    between_B = (familiar_B > 0) & (familiar_B < 1)
    assert (gates_BD[between_B, 0] >= PASSERS_PART).all()
    assert between_B.sum() > 3
    assert (gates_BD[:, 1:] == 0).all()
    assert 120 <= (familiar_B == 0).sum() < 140
