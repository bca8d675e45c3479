"""The coordinator on a real store, without Ray: order, fencing, restart, basis hand-out, identity."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from tiny_history import domain_record, stack_manifest, write_files

from bs_cluster.basis import Basis
from bs_cluster.config import CampaignConfig
from bs_cluster.coordinator.coordinator import EVENTS_KEPT, Coordinator, check_identity
from bs_cluster.coordinator.room import refuse_without_room
from bs_cluster.errors import ConfigError, FencedError, OutOfOrderError, StackError
from bs_cluster.events import Phase, Place, RoomScarce
from bs_cluster.records import CloseDomain, Finished, RoundOutcome, StackId, TrainRound
from bs_cluster.store import Store


def campaign(tmp_path, **sections) -> CampaignConfig:
    domains = [{"name": name, "sources": [{"kind": "embedded", "name": name}]} for name in ("chat", "code", "math")]
    settings = {
        "campaign": "demo",
        "domains": domains,
        "store": {"uri": str(tmp_path / "store")},
        "training": {"max_rounds": 2, "context": "cumulative"},
    }
    return CampaignConfig.model_validate(settings | sections)


class Driver:
    """Plays the worker group: stages files and speaks to the coordinator as ``training.worker`` does."""

    def __init__(self, config: CampaignConfig, tmp_path):
        self.shared: list[bytes] = []
        self.coordinator = Coordinator(config, share=self._share)
        self.tmp_path, self.config = tmp_path, config
        self.group = self.coordinator.register()
        self.store = Store(config.store.uri, config.campaign)

    def _share(self, data: bytes) -> bytes:
        self.shared.append(data)
        return data

    @property
    def step(self):
        return self.coordinator.next_work(self.group).step

    @property
    def basis(self):
        return self.coordinator.next_work(self.group).basis

    def manifest(self, stack: StackId):
        folder = write_files(self.tmp_path / "staged" / stack.name, seed=stack.round)
        self.store.upload_stack(folder)
        position = [domain.name for domain in self.config.domains].index(stack.domain)
        return stack_manifest(self.store, folder, stack.domain, stack.round, position)

    def outcome(self, stack: StackId, committed: bool) -> RoundOutcome:
        after = 2.5 if committed else 3.1
        return RoundOutcome(stack, 3.0, after, 3.0 - after, 0.1, 16, committed, None, 3, 0, 1.0, "measured")

    def train(self, stack: StackId, group: int | None = None):
        group = self.group if group is None else group
        return self.coordinator.commit(group, self.manifest(stack), self.outcome(stack, True))

    def reject(self, stack: StackId) -> None:
        self.coordinator.reject(self.group, self.outcome(stack, False))

    def close(self, domain: str, position: int, claim: Basis | None = None) -> None:
        basis = self.store.put_bytes("claim.safetensors", claim.to_bytes()).sha256 if claim else None
        capacity = claim.claimed_share() if claim else {}
        record = dataclasses.replace(domain_record(self.store, domain, position), basis=basis, capacity=capacity)
        self.coordinator.close(self.group, record)


@pytest.fixture
def driver(tmp_path) -> Driver:
    return Driver(campaign(tmp_path), tmp_path)


def test_a_whole_curriculum(driver):
    driver.train(StackId("chat", 1))
    driver.train(StackId("chat", 2))
    assert isinstance(driver.step, CloseDomain)
    driver.close("chat", 0)
    driver.reject(StackId("code", 1))
    assert driver.step == CloseDomain("code", 1, (), (StackId("chat", 1), StackId("chat", 2)))
    driver.close("code", 1)
    driver.train(StackId("math", 1))
    driver.reject(StackId("math", 2))
    driver.close("math", 2)
    assert driver.step == Finished()
    assert [ref.stack.name for ref, _ in driver.store.stacks()] == ["chat_r1", "chat_r2", "math_r1"]
    assert [outcome.committed for outcome in driver.coordinator.outcomes_of("math")] == [True, False]
    assert driver.store.verify().sound


def test_work_that_is_not_the_next_step_is_refused(driver):
    with pytest.raises(OutOfOrderError, match="chat_r2 was offered"):
        driver.train(StackId("chat", 2))
    with pytest.raises(OutOfOrderError, match="code_r1 was offered"):
        driver.train(StackId("code", 1))
    with pytest.raises(OutOfOrderError, match="a rejection of code_r1"):
        driver.reject(StackId("code", 1))
    with pytest.raises(OutOfOrderError, match="a closing of chat"):
        driver.close("chat", 0)
    driver.train(StackId("chat", 1))
    with pytest.raises(OutOfOrderError, match="chat_r1 was offered"):
        driver.train(StackId("chat", 1))
    driver.reject(StackId("chat", 2))
    with pytest.raises(OutOfOrderError, match="a closing of code"):
        driver.close("code", 1)
    assert [ref.stack.name for ref, _ in driver.store.stacks()] == ["chat_r1"]


def test_other_parents_than_the_committed_ones_are_refused(driver):
    driver.train(StackId("chat", 1))
    manifest = dataclasses.replace(driver.manifest(StackId("chat", 2)), parents=())
    with pytest.raises(OutOfOrderError):
        driver.coordinator.commit(driver.group, manifest, driver.outcome(StackId("chat", 2), True))


def test_a_group_that_was_replaced_can_do_nothing_any_more(driver):
    old, driver.group = driver.group, driver.coordinator.register()
    for attempt in (
        lambda: driver.coordinator.next_work(old),
        lambda: driver.train(StackId("chat", 1), group=old),
        lambda: driver.coordinator.reject(old, driver.outcome(StackId("chat", 1), False)),
        lambda: driver.coordinator.close(old, domain_record(driver.store, "chat")),
    ):
        with pytest.raises(FencedError, match="has been replaced"):
            attempt()
    assert driver.store.stacks() == []
    driver.train(StackId("chat", 1))


def test_a_coordinator_on_the_same_store_carries_on(driver, tmp_path):
    driver.train(StackId("chat", 1))
    driver.reject(StackId("chat", 2))
    again = Driver(driver.config, tmp_path)
    assert again.step == TrainRound(
        StackId("chat", 2), 0, tuple(ref for ref, _ in driver.store.stacks()), (StackId("chat", 1),)
    )  # a rejection is the one thing that may be lost
    again.reject(StackId("chat", 2))
    again.close("chat", 0)
    third = Driver(driver.config, tmp_path)
    assert third.step.stack == StackId("code", 1)
    assert third.step.context == (StackId("chat", 1),)


def claims(seed: int) -> Basis:
    generator = torch.Generator().manual_seed(seed)

    def directions() -> torch.Tensor:
        return torch.linalg.qr(torch.randn(10, 2 + seed, generator=generator))[0]

    return Basis({"a": directions(), "b": directions()}, {"a": directions()} if seed else {})


def test_the_basis_is_all_claims_combined_once_for_each_set_of_closed_domains(driver):
    assert driver.basis is None  # nothing is claimed yet
    driver.train(StackId("chat", 1))
    driver.reject(StackId("chat", 2))
    assert driver.basis is None  # a closing is not confined
    driver.close("chat", 0, claims(0))
    first = driver.basis
    assert {(side, site) for side, site, _ in Basis.from_bytes(first.handle).entries()} == {
        ("output", "a"),
        ("output", "b"),
    }
    driver.train(StackId("code", 1))
    assert driver.basis == first
    assert len(driver.shared) == 1
    driver.train(StackId("code", 2))
    driver.close("code", 1, claims(1))

    both = driver.basis
    assert both.digest != first.digest
    assert len(driver.shared) == 2
    assert driver.store.get_bytes(both.digest) == both.handle
    assert both.handle == Basis.combine([claims(0), claims(1)]).to_bytes()
    ranks = {(side, site): basis_XK.shape[1] for side, site, basis_XK in Basis.from_bytes(both.handle).entries()}
    assert ranks == {("output", "a"): 5, ("output", "b"): 5, ("input", "a"): 3}


def test_a_restarted_coordinator_hands_out_the_same_basis(driver, tmp_path):
    driver.train(StackId("chat", 1))
    driver.train(StackId("chat", 2))
    driver.close("chat", 0, claims(1))
    digest = driver.basis.digest
    assert Driver(driver.config, tmp_path).basis.digest == digest


def test_without_a_null_space_nobody_is_confined(tmp_path):
    driver = Driver(campaign(tmp_path, null_space={"enabled": False}), tmp_path)
    driver.train(StackId("chat", 1))
    driver.train(StackId("chat", 2))
    driver.close("chat", 0, claims(1))
    assert driver.basis is None


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"stack": {"rank": 8}}, r"stack\.rank = 8.*begun with 16"),
        ({"base": {"quantization": "none"}}, r"base\.quantization"),
        ({"null_space": {"space": "both"}}, r"null_space\.space"),
    ],
)
def test_a_campaign_begun_otherwise_is_not_taken_over(driver, tmp_path, section: dict, named: str):
    other = campaign(tmp_path, **section)
    with pytest.raises(ConfigError, match=named):
        check_identity(driver.store, other)
    with pytest.raises(ConfigError):
        Coordinator(other, share=lambda data: data)
    check_identity(driver.store, driver.config)
    check_identity(driver.store, campaign(tmp_path, training={"max_rounds": 5}, seed=7))  # how to train may change


def test_events_are_numbered_and_old_ones_are_dropped(driver):
    for number in range(EVENTS_KEPT + 10):
        driver.coordinator.report(Phase(str(number)))
    everything = driver.coordinator.events_since(Place())
    numbers = [told.place.number for told in everything]
    assert numbers == list(range(numbers[0], numbers[0] + EVENTS_KEPT))
    newest = driver.coordinator.events_since(everything[-3].place)
    assert [told.event for told in newest] == [Phase(str(EVENTS_KEPT + 8)), Phase(str(EVENTS_KEPT + 9))]
    assert driver.coordinator.events_since(everything[-1].place) == []


def test_a_watcher_of_the_coordinator_before_misses_nothing_of_the_next(driver, tmp_path, monkeypatch):
    for number in range(5):
        driver.coordinator.report(Phase(str(number)))
    seen = driver.coordinator.events_since(Place())[-1].place
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock set back has no part in it
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    again = Driver(driver.config, tmp_path).coordinator
    again.report(Phase("after the restart"))
    assert [told.event for told in again.events_since(seen)] == [Phase("after the restart")]


def closed_with(driver, rank: int) -> None:
    """A first domain that claimed ``rank`` of the ten directions of a site."""
    driver.train(StackId("chat", 1))
    driver.train(StackId("chat", 2))
    driver.close("chat", 0, Basis({"a": torch.eye(10)[:, :rank]}, {"b": torch.eye(20)[:, :2]}))


def test_a_site_without_a_free_direction_is_refused_before_training(driver):
    closed_with(driver, 10)
    why = r"all 10 directions that a writes.*null_space\.max_share or max_rank"
    with pytest.raises(StackError, match=why):
        _ = driver.step
    with pytest.raises(StackError, match=why):  # the driver's own look, before there are workers
        refuse_without_room(driver.coordinator.store)


def test_what_is_left_is_enough_for_the_driver(driver):
    closed_with(driver, 9)
    refuse_without_room(driver.coordinator.store)


def test_scarce_room_is_said_once_for_each_domain(driver):
    closed_with(driver, 8)
    assert driver.basis is not None
    assert driver.basis is not None
    (said,) = [told.event for told in driver.coordinator.events_since(Place()) if isinstance(told.event, RoomScarce)]
    assert said == RoomScarce("a", "output", 10, pytest.approx(0.2))


def test_ample_room_is_not_worth_a_word(driver):
    closed_with(driver, 7)
    assert driver.basis is not None
    assert not driver.coordinator.events_since(Place())
