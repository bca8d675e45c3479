"""The coordinator as the actor that a campaign starts: killed, it comes back and goes on from the store."""

import dataclasses
import time

import pytest
import ray
import torch
from ray.exceptions import RayActorError
from tiny_campaign import campaign
from tiny_history import domain_record, stack_manifest, write_files

from bs_cluster.campaign.train import start_coordinator
from bs_cluster.errors import ClusterResourceError, FencedError, OutOfOrderError
from bs_cluster.records import CloseDomain, Finished, RoundOutcome, StackId, TrainRound
from bs_cluster.stacks.basis import Basis
from bs_cluster.store import Store
from bs_cluster.training.launch import resource_plan

pytestmark = pytest.mark.ray

CALL_TIMEOUT_S = 60
RESTART_TIMEOUT_S = 60


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
    actor = start_coordinator(config)
    yield actor
    ray.kill(actor)
    deadline = time.monotonic() + RESTART_TIMEOUT_S
    while time.monotonic() < deadline:  # its name is free once it is gone
        try:
            ray.get_actor(f"coordinator-{config.campaign}", namespace="bs_cluster")
        except ValueError:
            return
        time.sleep(0.1)


def ask(coordinator, method, *arguments):
    return ray.get(getattr(coordinator, method).remote(*arguments), timeout=CALL_TIMEOUT_S)


def kill(coordinator):
    """Ends its process; Ray starts it anew. Waits until it answers again."""
    before = ask(coordinator, "events_since", 0)
    assert before
    ray.kill(coordinator, no_restart=False)
    deadline = time.monotonic() + RESTART_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if not ask(coordinator, "events_since", 0):
                return
        except RayActorError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the coordinator did not come back within {RESTART_TIMEOUT_S} s")


def finish_round(coordinator, store, folder, domain, group):
    """Commits the round that the coordinator hands out, as rank 0 of a worker group would."""
    step = ask(coordinator, "next_step", group)["step"]
    assert isinstance(step, TrainRound)
    assert step.stack == StackId(domain, 1)
    staged = write_files(folder / domain)
    manifest = dataclasses.replace(stack_manifest(store, staged, domain, 1, step.position), context=step.context)
    store.upload_stack(staged)
    outcome = RoundOutcome(step.stack, 3.0, 2.5, 0.5, 0.1, 16, True, None, 3, 0, 1.0, "improved")
    return ask(coordinator, "commit", group, manifest, outcome)


def close(coordinator, store, domain, position, group, basis=None):
    record = dataclasses.replace(domain_record(store, domain, position), basis=basis)
    ask(coordinator, "close", group, record)


def test_a_killed_coordinator_goes_on_from_the_store(coordinator, store, tmp_path):
    ask(coordinator, "report", {"kind": "phase", "text": "hello"})
    group = ask(coordinator, "register")
    ref = finish_round(coordinator, store, tmp_path, "aa", group)
    assert [r for r, _ in store.stacks()] == [ref]

    kill(coordinator)

    group = ask(coordinator, "register")
    step = ask(coordinator, "next_step", group)["step"]
    assert isinstance(step, CloseDomain)
    assert step.stacks == (StackId("aa", 1),)
    claim = Basis({"somewhere": torch.eye(5)[:, :2]})
    close(coordinator, store, "aa", 0, group, store.put_bytes("claim", claim.to_bytes()).sha256)
    work = ask(coordinator, "next_step", group)
    assert work["step"].stack == StackId("bb", 1)
    assert work["step"].parents == (ref,)
    digest, handle = work["basis"]
    fetched = ray.get(handle, timeout=CALL_TIMEOUT_S)
    assert store.get_bytes(digest) == fetched
    assert Basis.from_bytes(fetched).output["somewhere"].shape == (5, 2)

    finish_round(coordinator, store, tmp_path, "bb", group)
    close(coordinator, store, "bb", 1, group)
    assert isinstance(ask(coordinator, "next_step", group)["step"], Finished)
    assert store.verify().sound


def test_a_basis_handed_out_before_the_death_can_be_had_again_after_it(coordinator, store, tmp_path):
    ask(coordinator, "report", {"kind": "phase", "text": "hello"})
    group = ask(coordinator, "register")
    finish_round(coordinator, store, tmp_path, "aa", group)
    claim = Basis({"somewhere": torch.eye(5)[:, :2]})
    close(coordinator, store, "aa", 0, group, store.put_bytes("claim", claim.to_bytes()).sha256)
    before = ask(coordinator, "next_step", group)["basis"]
    kill(coordinator)
    after = ask(coordinator, "next_step", ask(coordinator, "register"))["basis"]
    assert after[0] == before[0]
    assert ray.get(after[1], timeout=CALL_TIMEOUT_S) == store.get_bytes(before[0])


def test_a_replaced_group_commits_nothing(coordinator, store, tmp_path):
    old = ask(coordinator, "register")
    new = ask(coordinator, "register")
    with pytest.raises(FencedError, match="has been replaced"):
        ask(coordinator, "next_step", old)
    staged = write_files(tmp_path / "aa")
    manifest = stack_manifest(store, staged, "aa", 1)
    store.upload_stack(staged)
    outcome = RoundOutcome(StackId("aa", 1), 3.0, 2.5, 0.5, 0.1, 16, True, None, 3, 0, 1.0, "improved")
    with pytest.raises(FencedError):
        ask(coordinator, "commit", old, manifest, outcome)
    with pytest.raises(FencedError):
        ask(coordinator, "reject", old, outcome)
    assert store.stacks() == []
    ask(coordinator, "commit", new, manifest, outcome)
    assert len(store.stacks()) == 1


def test_groups_of_before_a_restart_are_fenced_too(coordinator):
    ask(coordinator, "report", {"kind": "phase", "text": "hello"})
    group = ask(coordinator, "register")
    kill(coordinator)
    with pytest.raises(FencedError):
        ask(coordinator, "next_step", group)


def test_work_that_is_not_next_is_refused(coordinator, store, tmp_path):
    group = ask(coordinator, "register")
    staged = write_files(tmp_path / "bb")
    store.upload_stack(staged)
    outcome = RoundOutcome(StackId("bb", 1), 3.0, 2.5, 0.5, 0.1, 16, True, None, 3, 0, 1.0, "improved")
    with pytest.raises(OutOfOrderError, match="bb_r1 was offered"):
        ask(coordinator, "commit", group, stack_manifest(store, staged, "bb", 1, 1), outcome)
    assert store.stacks() == []


def test_one_campaign_has_one_coordinator_in_a_cluster(coordinator, config):
    ask(coordinator, "events_since", 0)
    with pytest.raises(ClusterResourceError, match="is being trained by another job"):
        start_coordinator(config)


def test_a_cluster_too_small_is_told_with_its_numbers(config):
    wide = config.model_copy(update={"training": config.training.model_copy(update={"num_workers": 5})})
    with pytest.raises(ClusterResourceError, match="5 CPUs wanted by 5 training workers, the cluster has 2") as raised:
        resource_plan(wide, ray.cluster_resources(), autoscales=False)
    assert "training.num_workers" in str(raised.value)
    gpu = config.model_copy(update={"training": config.training.model_copy(update={"use_gpu": True})})
    with pytest.raises(ClusterResourceError, match="2 GPUs wanted by 2 training workers, the cluster has 0"):
        resource_plan(gpu, ray.cluster_resources(), autoscales=False)
    assert resource_plan(config, ray.cluster_resources(), autoscales=False).workers == 2
    assert resource_plan(wide, ray.cluster_resources(), autoscales=True).workers == 5
