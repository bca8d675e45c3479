"""What an earlier sweep measured counts again under the same stacks, wherever its domains stand now; nothing else."""

import itertools

import numpy as np
import pytest
from tiny_history import bundle_manifest, close_after, commit_round

from bs_cluster.campaign.carried import same_domains, translate
from bs_cluster.store import Store

DOMAINS = ("chat", "math", "code")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carried")
    store = Store(str(folder), "demo")
    store.take_epoch()
    for position, domain in enumerate(DOMAINS):
        close_after(store, folder / "staged", domain, 1, position)
    store.commit_bundle(bundle_manifest(store))
    return store


def mask_of(names, domains):
    return sum(1 << domains.index(name) for name in names)


def shared(store, domains, live=None):
    bundle = store.bundles()[-1][2]
    return same_domains(bundle, [ref for ref, _ in store.stacks()] if live is None else live, domains)


@pytest.mark.parametrize("domains", [DOMAINS, ("code", "chat", "math"), ("chat", "code"), ("law", "code", "math")])
def test_a_combination_is_the_same_domains_wherever_they_stand(store, domains):
    bits = shared(store, domains)
    for size in range(4):
        for names in itertools.combinations(DOMAINS, size):
            (new,), (counts,) = translate(np.array([mask_of(names, DOMAINS)]), bits)
            assert counts == (set(names) <= set(domains))
            if counts:
                assert new == mask_of(names, domains)


def test_a_domain_with_other_stacks_is_another_one(store, tmp_path):
    live = [ref for ref, _ in store.stacks()]
    other = Store(str(tmp_path), "demo")
    other.take_epoch()
    theirs = commit_round(other, tmp_path / "staged", "math", 1, steps=5)
    assert shared(store, DOMAINS, [theirs if ref.stack == theirs.stack else ref for ref in live]) == {0: 0, 2: 2}
    assert shared(store, DOMAINS, live[:-1]) == {0: 0, 1: 1}
    assert shared(store, DOMAINS, [*live, commit_round(other, tmp_path / "staged", "math", 2)]) == {0: 0, 2: 2}
