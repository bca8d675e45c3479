"""Nodes that come and go: the coordinator stays with the head, and lacking nodes are waited for in words."""

from typing import Any

import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster
from tiny_campaign import campaign

from bs_cluster.campaign import nodes
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.nodes import head_node, nodes_for, read_cluster
from bs_cluster.campaign.resources import Ask
from bs_cluster.campaign.train import start_coordinator
from bs_cluster.coordinator.client import CoordinatorClient
from bs_cluster.errors import ClusterResourceError
from bs_cluster.events import Phase, Place

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

WORKERS = Ask("training workers", 2, 2, 2.0, 0.0, "training.num_workers")


@pytest.fixture(scope="module")
def cluster():
    """A head with one CPU, to which a test adds what it needs."""
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(nodes, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(nodes, "SAY_EVERY_S", 0.5)


def test_no_death_of_a_worker_node_touches_the_coordinator(cluster, tmp_path):
    worker = cluster.add_node(num_cpus=4)
    cluster.wait_for_nodes()
    found = read_cluster()
    assert sorted(node["CPU"] for node in found.nodes) == [1.0, 4.0]
    assert found.head["CPU"] == 1.0
    assert not found.grows

    coordinator = start_coordinator(Campaign.of(campaign(tmp_path, tmp_path / "store", ("aa", "bb"))), print)
    group = coordinator.register()
    coordinator.report(Phase("hello"))
    assert actor(coordinator)["Address"]["NodeID"] == head_node()["NodeID"]

    cluster.remove_node(worker, allow_graceful=False)
    cluster.wait_for_nodes()
    assert [told.event for told in coordinator.events_since(Place())] == [Phase("hello")]
    coordinator.next_work(group)  # it remembers the group: it is the same process
    assert actor(coordinator)["NumRestarts"] == 0
    coordinator.stop()


def actor(client: CoordinatorClient) -> dict[str, Any]:
    return actors(client.actor._actor_id.hex())


def test_nodes_that_do_not_come_are_told_and_given_up(cluster, impatient):
    said: list[str] = []
    with pytest.raises(ClusterResourceError) as raised, nodes_for(WORKERS, read_cluster(), 2.0, said.append):
        pytest.fail("there is no room for them")
    assert said[0].startswith(
        "waiting for nodes: room for 0 of 2 training workers with 2 CPUs each; no node is pending"
    )
    assert 2 <= len(said) <= 6
    assert "2 training workers with 2 CPUs each, 0 came: the cluster has 1 nodes with 1 CPU" in str(raised.value)
    assert "training.start_timeout_s or change training.num_workers" in str(raised.value)


def test_nodes_that_come_end_the_waiting_and_nodes_that_go_begin_it_anew(cluster, impatient):
    worker = cluster.add_node(num_cpus=4)
    cluster.wait_for_nodes()
    said: list[str] = []
    with nodes_for(WORKERS, read_cluster(), 60.0, said.append) as room:
        assert said == []
        cluster.remove_node(worker, allow_graceful=False)
        cluster.wait_for_nodes()
        room.looked = 0.0
        assert not room.look()
        assert said[0].startswith("waiting for nodes: room for 0 of 2")
