"""The coordinator as the actor that a campaign starts: killed, it comes back and goes on from the store."""

import dataclasses
import os
import signal
import time

import pytest
import ray
import torch
from ray._private.state import actors
from tiny_campaign import campaign
from tiny_history import domain_record, stack_manifest, write_files

from bs_cluster import waiting
from bs_cluster.basis import Basis
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.train import start_coordinator
from bs_cluster.coordinator.client import CoordinatorClient
from bs_cluster.errors import ClusterResourceError, FencedError, OutOfOrderError
from bs_cluster.events import Phase, Place
from bs_cluster.records import CloseDomain, Finished, RoundOutcome, StackId, TrainRound
from bs_cluster.store import Store

pytestmark = pytest.mark.ray

CALL_TIMEOUT_S = 60
RESTART_TIMEOUT_S = 60
ANSWERS_AFTER_STOP = 300


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def config(tmp_path):
    """Nothing here loads the base: the coordinator only needs its name."""
    return campaign(tmp_path, tmp_path / "store", ("aa", "bb"), training={"max_rounds": 1})


@pytest.fixture
def store(config):
    return Store(config.store.uri, config.campaign)


@pytest.fixture
def coordinator(config):
    client = start_coordinator(Campaign.of(config), print)
    yield client
    client.stop()
    deadline = time.monotonic() + RESTART_TIMEOUT_S
    while time.monotonic() < deadline:  # its name is free once it is gone
        try:
            ray.get_actor(f"coordinator-{config.campaign}", namespace="bs_cluster")
        except ValueError:
            return
        time.sleep(0.1)


def kill(coordinator):
    """Ends its process; Ray starts it anew. Waits until it answers again."""
    coordinator.report(Phase("hello"))
    before = coordinator.events_since(Place())
    assert before
    ray.kill(coordinator.actor, no_restart=False)
    deadline = time.monotonic() + RESTART_TIMEOUT_S
    while coordinator.events_since(Place()):
        assert time.monotonic() < deadline, f"the coordinator did not come back within {RESTART_TIMEOUT_S} s"
        time.sleep(0.1)


def finish_round(coordinator, store, folder, domain, group):
    """Commits the round that the coordinator hands out, as rank 0 of a worker group would."""
    step = coordinator.next_work(group).step
    assert isinstance(step, TrainRound)
    assert step.stack == StackId(domain, 1)
    staged = write_files(folder / domain)
    manifest = dataclasses.replace(stack_manifest(store, staged, domain, 1, step.position), context=step.context)
    store.upload_stack(staged)
    outcome = RoundOutcome(step.stack, 3.0, 2.5, 0.5, 0.1, 16, True, None, 3, 0, 1.0, "improved")
    return coordinator.commit(group, manifest, outcome)


def close(coordinator, store, domain, position, group, basis=None):
    record = dataclasses.replace(domain_record(store, domain, position), basis=basis)
    coordinator.close(group, record)


def test_a_killed_coordinator_goes_on_from_the_store(coordinator, store, tmp_path):
    group = coordinator.register()
    ref = finish_round(coordinator, store, tmp_path, "aa", group)
    assert [r for r, _ in store.stacks()] == [ref]

    kill(coordinator)

    group = coordinator.register()
    step = coordinator.next_work(group).step
    assert isinstance(step, CloseDomain)
    assert step.stacks == (StackId("aa", 1),)
    claim = Basis({"somewhere": torch.eye(5)[:, :2]})
    close(coordinator, store, "aa", 0, group, store.put_bytes("claim", claim.to_bytes()).sha256)
    work = coordinator.next_work(group)
    assert work.step.stack == StackId("bb", 1)
    assert work.step.parents == (ref,)
    fetched = ray.get(work.basis.handle, timeout=CALL_TIMEOUT_S)
    assert store.get_bytes(work.basis.digest) == fetched
    assert Basis.from_bytes(fetched).output["somewhere"].shape == (5, 2)

    finish_round(coordinator, store, tmp_path, "bb", group)
    close(coordinator, store, "bb", 1, group)
    assert isinstance(coordinator.next_work(group).step, Finished)
    assert store.verify().sound


def test_a_basis_handed_out_before_the_death_can_be_had_again_after_it(coordinator, store, tmp_path):
    group = coordinator.register()
    finish_round(coordinator, store, tmp_path, "aa", group)
    claim = Basis({"somewhere": torch.eye(5)[:, :2]})
    close(coordinator, store, "aa", 0, group, store.put_bytes("claim", claim.to_bytes()).sha256)
    before = coordinator.next_work(group).basis
    kill(coordinator)
    after = coordinator.next_work(coordinator.register()).basis
    assert after.digest == before.digest
    assert ray.get(after.handle, timeout=CALL_TIMEOUT_S) == store.get_bytes(before.digest)


def test_a_replaced_group_commits_nothing(coordinator, store, tmp_path):
    old = coordinator.register()
    new = coordinator.register()
    with pytest.raises(FencedError, match="has been replaced"):
        coordinator.next_work(old)
    staged = write_files(tmp_path / "aa")
    manifest = stack_manifest(store, staged, "aa", 1)
    store.upload_stack(staged)
    outcome = RoundOutcome(StackId("aa", 1), 3.0, 2.5, 0.5, 0.1, 16, True, None, 3, 0, 1.0, "improved")
    with pytest.raises(FencedError):
        coordinator.commit(old, manifest, outcome)
    with pytest.raises(FencedError):
        coordinator.reject(old, outcome)
    assert store.stacks() == []
    coordinator.commit(new, manifest, outcome)
    assert len(store.stacks()) == 1


def test_groups_of_before_a_restart_are_fenced_too(coordinator):
    group = coordinator.register()
    kill(coordinator)
    with pytest.raises(FencedError):
        coordinator.next_work(group)


def test_work_that_is_not_next_is_refused(coordinator, store, tmp_path):
    group = coordinator.register()
    staged = write_files(tmp_path / "bb")
    store.upload_stack(staged)
    outcome = RoundOutcome(StackId("bb", 1), 3.0, 2.5, 0.5, 0.1, 16, True, None, 3, 0, 1.0, "improved")
    with pytest.raises(OutOfOrderError, match="bb_r1 was offered"):
        coordinator.commit(group, stack_manifest(store, staged, "bb", 1, 1), outcome)
    assert store.stacks() == []


def test_one_campaign_has_one_coordinator_in_a_cluster(coordinator, config):
    coordinator.events_since(Place())
    with pytest.raises(ClusterResourceError, match="is being trained by another job"):
        start_coordinator(Campaign.of(config), print)


def test_a_coordinator_that_does_not_answer_is_waited_for_in_words_and_not_for_ever(coordinator, monkeypatch):
    monkeypatch.setattr(waiting, "SAY_EVERY_S", 0.5)
    said: list[str] = []
    coordinator.register()  # it is up
    impatient = CoordinatorClient(coordinator.actor, 2.0, said.append)
    os.kill(pid := pid_of(impatient), signal.SIGSTOP)
    try:
        with pytest.raises(
            ClusterResourceError, match=r"waited \d+ s for the coordinator: the workers' events"
        ) as raised:
            impatient.events_since(Place())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "training.answer_timeout_s" in str(raised.value)
    assert any("of 2 s" in line for line in said)
    assert coordinator.events_since(Place()) == []


def test_a_coordinator_that_ended_is_told_as_such(config):
    client = start_coordinator(Campaign.of(config), print)
    client.register()
    client.stop()
    with pytest.raises(ClusterResourceError, match="has ended; run the same command"):
        ask_until_it_ends(client)


def ask_until_it_ends(client: CoordinatorClient) -> None:
    """Ray ends an actor soon, and not at once."""
    for _ in range(ANSWERS_AFTER_STOP):
        client.events_since(Place())
        time.sleep(0.1)


def pid_of(client: CoordinatorClient) -> int:
    return actors(client.actor._actor_id.hex())["Pid"]
