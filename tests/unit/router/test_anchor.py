"""The anchor: a prompt's own domain, nothing for a prompt that is far from all, whatever the size of the states."""

import numpy as np
import pytest
from worlds import DOMAINS, OWN, anchor_of, features

from bs_cluster.errors import DataError
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.learned import gate_inputs
from bs_cluster.router.multilinear import served_gates
from bs_cluster.sweep.combinations import all_masks


def choices(anchor, states) -> np.ndarray:
    """The domains (B,) to which the anchor gives more than half their weight, as a combination."""
    logits_BD = anchor.logits(anchor.similarity(anchor.directions(states)))
    return (served_gates(logits_BD, list(all_masks(3))) > 0.5) @ (1 << np.arange(3))


def test_a_domain_s_prompts_get_their_domain_and_foreign_ones_the_base():
    anchor = anchor_of()
    for domain, mask in OWN.items():
        assert (choices(anchor, features(domain, 100, seed=5)) == mask).mean() >= 0.95
    for kind in range(6):
        assert (choices(anchor, features(f"foreign:{kind}", 100, seed=5)) == 0).mean() >= 0.95


def test_at_most_a_few_of_a_domain_s_own_prompts_are_taken_for_foreign():
    own = np.concatenate([features(domain, 200, seed=6) for domain in DOMAINS])
    assert (choices(anchor_of(), own) == 0).mean() < 0.08  # each limit is the 2 % quantile of held-out prompts


def test_the_order_of_domains_changes_nothing_but_the_order():
    order = (2, 0, 1)
    states = np.concatenate([features(owner, 20, seed=5) for owner in (*DOMAINS, "mixed:chat_math", "foreign:1")])
    one, other = (gate_inputs(anchor, states) for anchor in (anchor_of(), anchor_of([DOMAINS[d] for d in order])))
    np.testing.assert_allclose(other.anchor_BD, one.anchor_BD[:, order], atol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e6])
def test_states_of_any_size_are_told_apart(scale):
    """Larger bases reach far beyond what float16 holds."""
    train = np.concatenate([scale * features(domain, 60, seed=1) for domain in DOMAINS])
    train[:, 0] += 1e3 * scale  # one feature hundreds of times larger than the rest
    anchor = fit_anchor(train, np.repeat(np.arange(3), 60), 3)
    for domain, mask in OWN.items():
        states = scale * features(domain, 50, seed=5)
        states[:, 0] += 1e3 * scale
        assert (choices(anchor, states) == mask).mean() >= 0.9


def test_it_is_a_function_of_its_prompts():
    one, other = anchor_of(), anchor_of()
    np.testing.assert_array_equal(one.limit_D, other.limit_D)
    np.testing.assert_array_equal(one.bank_NK, other.bank_NK)


def test_too_few_prompts_and_broken_states_are_refused():
    states = np.concatenate([features(domain, 10, seed=1) for domain in DOMAINS])
    owners = np.repeat(np.arange(3), 10)
    with pytest.raises(DataError, match=r"\[10, 10, 3\].*needs 5 of each"):
        fit_anchor(states[:23], owners[:23], 3)
    states[4, 2] = np.inf
    with pytest.raises(DataError, match="not finite"):
        fit_anchor(states, owners, 3)
