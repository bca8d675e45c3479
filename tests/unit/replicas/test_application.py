"""What a Serve config file may say, and what Ray is told of it."""

import pytest

from bs_cluster.errors import ConfigError, UsageError
from bs_cluster.replicas.application import Replicas, application, build
from bs_cluster.serving.settings import KEY_VARIABLE, Settings

ARGS = {"store": "s3://bucket/store", "campaign": "tiny"}


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-one")


def engine(application):
    return application._bound_deployment


def test_settings_of_the_file_and_the_key_of_the_environment_reach_the_replica(key):
    _, campaign, settings = engine(build({**ARGS, "max_running": 3, "drain": 5, "hosts": ["a.example"]})).init_args
    assert campaign == "tiny"
    assert settings == Settings(keys=("sk-one",), max_running=3, drain=5.0, hosts=["a.example"])


def test_a_cluster_without_a_key_serves_nobody(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=KEY_VARIABLE):
        build(ARGS)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"max_runing": 3}, r"args\.max_runing"),
        ({"max_tokens": "many"}, r"args\.max_tokens"),
        ({"keys": ["sk-in-a-file"]}, r"args\.keys"),
    ],
)
def test_what_is_no_setting_is_told(key, more, words):
    with pytest.raises(ConfigError, match=words):
        build({**ARGS, **more})


def test_a_setting_no_server_could_work_with(key):
    with pytest.raises(ConfigError, match="max_running 0: must be more than 0"):
        build({**ARGS, "max_running": 0})


def test_without_a_campaign(key):
    with pytest.raises(ConfigError, match=r"args\.campaign: is missing"):
        build({"store": "s3://bucket/store"})


def test_a_replica_takes_more_than_its_engine_so_that_it_refuses_the_rest_itself():
    settings = Settings(max_running=3, max_waiting=2, drain=7.0)
    deployment = engine(application("/store", "tiny", settings, Replicas(2, 2)))
    assert deployment.num_replicas == 2
    assert deployment.max_ongoing_requests > 5
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 7.0
    assert deployment.ray_actor_options["num_gpus"] == 0


def test_between_two_numbers_ray_has_as_many_as_requests_ask_for():
    settings = Settings(device="cuda:0", max_running=3)
    deployment = engine(application("/store", "tiny", settings, Replicas(1, 4, cpus=2)))
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 3)
    assert (deployment.ray_actor_options["num_cpus"], deployment.ray_actor_options["num_gpus"]) == (2, 1)
