"""Stacks that are in memory only while they fire: the same answers to the last bit, no more memory than was said."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import openai
import pytest
import torch
from serving import server
from tiny_bundle import commit_bundle

from bs_cluster.adapter_format import WEIGHTS_NAME
from bs_cluster.errors import IntegrityError
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.promotion import HAND
from bs_cluster.records import CHAMPION
from bs_cluster.serving.metrics import Metrics, Prometheus
from bs_cluster.serving.residency import Residency

DOMAINS = ("aa", "bb", "cc")
ROUNDS = 2


@pytest.fixture(scope="module")
def three(inputs, tmp_path_factory):
    """Three domains of two stacks each; the base with all of them in this process."""
    three = commit_bundle(inputs, tmp_path_factory.mktemp("three") / "store", DOMAINS, ROUNDS)
    three.store.promote(1, CHAMPION, HAND, "the first")
    return three


@pytest.fixture(scope="module")
def manifests(three):
    return [manifest for _, manifest in three.store.stacks()]


@pytest.fixture(scope="module")
def stack_bytes(manifests):
    return manifests[0].file(WEIGHTS_NAME).size  # the tiny base computes as stacks are stored, in float32


@pytest.fixture
def held(three, manifests, stack_bytes):
    """A base of its own, and a residency that has room for so many stacks and knows all."""

    def held(room: int) -> tuple[StackedBase, Residency]:
        stacked = StackedBase.load(three.config.base, "cpu")
        residency = Residency(stacked, room * stack_bytes, Metrics(Prometheus()))
        for manifest in manifests:
            residency.expect(manifest, three.store)
        return stacked, residency

    return held


def brought(residency: Residency, names: list[str], in_use: tuple[str, ...] = ()) -> None:
    came = Event()
    while not residency.hold(names, in_use, came.set):
        assert came.wait(30)
        came.clear()


def of(*domains: str) -> list[str]:
    return [f"{domain}_r{number}" for domain in domains for number in range(1, ROUNDS + 1)]


@torch.no_grad()
def logits(stacked: StackedBase, gates: dict[str, float]) -> torch.Tensor:
    weights_BD = torch.tensor([[gates.get(domain, 0.0) for domain in DOMAINS]] * 2)
    with stacked.tuner.gates(weights_BD, DOMAINS):
        return stacked.base.model(input_ids=torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])).logits


def test_not_a_bit_of_what_fires_hangs_on_what_else_is_in_memory(three, held):
    stacked, residency = held(room=4)
    assert len(stacked.names) == 4
    for on in (*itertools.permutations(DOMAINS, 2), ("aa",), ("cc",), ("bb",)):
        gates = {domain: 1.0 - 0.3 * place for place, domain in enumerate(on)}
        brought(residency, of(*on))
        assert len(stacked.names) <= 4
        assert torch.equal(logits(stacked, gates), logits(three.stacked, gates)), on


def test_what_has_not_fired_for_longest_leaves_and_what_is_in_use_stays(held):
    stacked, residency = held(room=4)
    assert set(stacked.names) == set(of("aa", "bb"))
    brought(residency, of("aa"))
    brought(residency, of("cc"))
    assert set(stacked.names) == set(of("aa", "cc"))
    brought(residency, of("bb"), in_use=tuple(of("aa")))
    assert set(stacked.names) == set(of("aa", "bb"))
    came = Event()
    assert not residency.hold(of("cc"), of("aa", "bb"), came.set)  # no room beside those
    assert not came.wait(0.5)
    brought(residency, of("cc"))


def test_a_request_that_fires_more_than_the_budget_has_it_all_while_nothing_else_runs(held):
    stacked, residency = held(room=2)
    assert not residency.hold(of("aa", "bb"), of("aa"), lambda: None)
    brought(residency, of(*DOMAINS))
    assert len(stacked.names) == 6
    brought(residency, of("bb"))
    assert set(stacked.names) == set(of("bb"))


def test_bytes_that_are_not_what_was_committed_do_not_fire(three, manifests, held):
    stacked, residency = held(room=2)
    (blob,) = Path(three.store.uri).rglob(manifests[-1].file(WEIGHTS_NAME).sha256)
    kept = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(kept[:-4] + b"abcd")
    try:
        with pytest.raises(IntegrityError, match="is damaged"):
            brought(residency, of("cc"))
        assert "cc_r2" not in stacked.names
    finally:
        blob.write_bytes(kept)
    brought(residency, of("cc"))
    assert set(of("cc")) <= set(stacked.names)


@pytest.mark.slow
def test_a_server_with_room_for_one_domain_answers_as_one_with_room_for_all(three, stack_bytes, tmp_path):
    asked = [
        (f"{domain} word{n}", model) for n, domain in enumerate(DOMAINS * 4) for model in ("tiny", f"tiny:{domain}")
    ]
    asked += [("aa both", "tiny")]

    def answers(*options: str) -> tuple[list[str], float, float]:
        with server(three.store.uri, tmp_path / "log", "--max-running", "4", *options) as served:

            def answer(one: tuple[str, str]) -> str:
                with served.client() as client:
                    said = client.chat.completions.create(
                        model=one[1], messages=[{"role": "user", "content": one[0]}], temperature=0, max_tokens=8
                    )
                    return said.choices[0].message.content or ""

            with ThreadPoolExecutor(8) as pool:
                said = list(pool.map(answer, asked))
            answer(("aa word0", "tiny:aa"))  # the last one routed may have fired all of them
            return said, served.metric("resident_stacks"), served.metric("stack_seconds_count")

    everything, resident, reads = answers()
    assert (resident, reads) == (6, 0)
    scarce, resident, reads = answers("--resident-bytes", str(ROUNDS * stack_bytes))
    assert scarce == everything
    assert resident == ROUNDS
    assert reads >= 2 * ROUNDS


@pytest.mark.slow
def test_a_stack_that_cannot_be_read_fails_its_own_request(three, manifests, stack_bytes, tmp_path):
    (blob,) = Path(three.store.uri).rglob(manifests[-1].file(WEIGHTS_NAME).sha256)
    kept = blob.read_bytes()
    with server(three.store.uri, tmp_path / "log", "--resident-bytes", str(2 * stack_bytes)) as served:
        blob.chmod(0o644)
        blob.write_bytes(b"damaged")
        try:
            with served.client() as client:
                with pytest.raises(openai.InternalServerError, match="cannot be read"):
                    client.completions.create(model="tiny:cc", prompt="cc x", temperature=0, max_tokens=3)
                assert client.completions.create(model="tiny:bb", prompt="x", max_tokens=3).choices[0].finish_reason
                assert "is damaged" in served.log.read_text() or "bytes in the manifest" in served.log.read_text()
                blob.write_bytes(kept)
                assert client.completions.create(model="tiny:cc", prompt="x", max_tokens=3).choices[0].finish_reason
        finally:
            blob.write_bytes(kept)
