"""What a cluster can ever give: before training, not after an hour of waiting."""

import math

import pytest
from tiny_campaign import campaign

from bs_cluster.campaign.resources import (
    Ask,
    Cluster,
    NodeType,
    refuse_impossible,
    refuse_rollouts,
    sweep_ask,
    training_ask,
)
from bs_cluster.config import CampaignConfig
from bs_cluster.errors import ClusterResourceError

HEAD = {"CPU": 8.0}
GPU_NODE = {"CPU": 48.0, "GPU": 4.0}
FIXED = Cluster(HEAD, (HEAD,))
CLOUD = Cluster(HEAD, (HEAD,), (NodeType("spot", GPU_NODE, 4),), most_workers=4)


def workers(count: int, cpus: float = 1, gpus: float = 0) -> Ask:
    return Ask("training workers", count, count, cpus, gpus, "training.num_workers")


@pytest.fixture
def make(tmp_path):
    def make(**changes):
        return campaign(tmp_path, tmp_path / "store", ("aa", "bb"), **changes)

    return make


class TestRoom:
    def test_processes_do_not_straddle_nodes(self):
        two = Cluster(HEAD, (HEAD, {"CPU": 3.0}))
        assert two.has_room(workers(2, cpus=6)) == 1  # 11 CPUs in all, but no second node has six
        assert two.has_room(workers(9, cpus=1)) == 11

    def test_shares_of_a_gpu_add_up(self):
        assert Cluster(HEAD, (GPU_NODE,)).has_room(workers(1, cpus=1, gpus=0.1)) == 40
        assert Cluster(HEAD, (HEAD,)).has_room(workers(1, cpus=1, gpus=0.1)) == 0

    def test_node_types_and_the_number_of_nodes_bound_what_can_be_had(self):
        ask = workers(1, cpus=4, gpus=1)
        assert CLOUD.has_room(ask) == 0
        assert CLOUD.obtainable(ask) == 16
        narrow = Cluster(HEAD, (HEAD,), (NodeType("spot", GPU_NODE, 4), NodeType("big", {"CPU": 96, "GPU": 8}, 9)), 3)
        assert narrow.obtainable(ask) == 24  # three nodes, all of the larger type

    def test_nodes_that_are_there_count_even_where_no_type_is_like_them(self):
        assert Cluster(HEAD, (HEAD, GPU_NODE), (NodeType("cpu", {"CPU": 2}, 1),)).obtainable(workers(1, 1, 1)) == 4

    def test_an_autoscaler_that_does_not_say_what_it_starts_is_waited_for(self):
        assert Cluster(HEAD, (HEAD,), unseen=True).obtainable(workers(1000, gpus=8)) == math.inf


def rewarded(config: CampaignConfig, rollouts: str) -> CampaignConfig:
    """The same campaign, its first domain with a round of rewards."""
    dump = config.model_dump(mode="json")
    source = dump["domains"][0]["sources"][0] | {"verify": "number"}
    grpo = {"objective": "grpo", "source": source, "rollouts": rollouts}
    dump["domains"][0]["rounds"] = [{"objective": "sft"}, grpo]
    return CampaignConfig.model_validate(dump)


class TestRefusal:
    def test_evaluators_that_answer_during_training_need_room_beside_it(self, make):
        fits = rewarded(make(training={"num_workers": 6}, sweep={"evaluators": 2}), "evaluators")
        refuse_rollouts(fits, FIXED)
        config = make(training={"num_workers": 7}, sweep={"evaluators": 2})
        refuse_impossible((training_ask(config), sweep_ask(config)), FIXED)  # one after the other they have room
        for without in (config, rewarded(config, "workers")):
            refuse_rollouts(without, FIXED)
        greedy = rewarded(config, "evaluators")
        refuse_rollouts(greedy, CLOUD)  # it grows
        with pytest.raises(ClusterResourceError, match=r"2 evaluators .* beside 7 training workers .*9 CPUs in all"):
            refuse_rollouts(greedy, FIXED)

    def test_of_workers_that_come_and_go_the_fewest_must_be_had(self, make):
        fewer = make(training={"num_workers": 16, "min_workers": 8, "global_batch": 64})
        refuse_impossible([training_ask(fewer)], FIXED)
        too_many = make(training={"num_workers": 16, "min_workers": 9, "global_batch": 64})
        with pytest.raises(
            ClusterResourceError, match=r"9 to 16 training workers .* there can be 8.*training.min_work"
        ):
            refuse_impossible([training_ask(too_many)], FIXED)

    def test_both_phases_are_looked_at_before_the_first(self, make):
        fits = make(training={"num_workers": 8}, sweep={"evaluators": 8})
        refuse_impossible((training_ask(fits), sweep_ask(fits)), FIXED)
        greedy = make(sweep={"cpus_per_evaluator": 999})
        with pytest.raises(
            ClusterResourceError, match="2 evaluators with 999 CPUs each wanted, there can be 0"
        ) as raised:
            refuse_impossible((training_ask(greedy), sweep_ask(greedy)), FIXED)
        assert "sweep.evaluators, sweep.cpus_per_evaluator" in str(raised.value)

    def test_too_many_workers_are_told_what_there_can_be(self, make):
        many = training_ask(make(training={"num_workers": 40}))
        with pytest.raises(ClusterResourceError) as raised:
            refuse_impossible((many,), FIXED)
        assert str(raised.value) == (
            "40 training workers with 1 CPU each wanted, there can be 8: the cluster has 1 nodes with 8 CPUs; none can "
            "be added. Change training.num_workers, training.cpus_per_worker, or give the cluster more or larger nodes"
        )

    def test_a_gpu_where_there_is_none_names_the_switch(self, make):
        gpu = training_ask(make(training={"use_gpu": True}))
        with pytest.raises(ClusterResourceError, match=r"1 CPU, 1 GPU each wanted, there can be 0.*use_gpu=false"):
            refuse_impossible((gpu,), FIXED)
        refuse_impossible((gpu,), CLOUD)

    def test_a_cluster_that_grows_says_to_what(self, make):
        with pytest.raises(
            ClusterResourceError, match=r"there can be 16: .*may add 4 spot \(48 CPUs, 4 GPUs\), 4 in all"
        ):
            refuse_impossible((workers(17, cpus=4, gpus=1),), CLOUD)
