"""Replicas on the Ray cluster at hand, from the first until somebody stops this process."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from bs_cluster.campaign.connect import outlasts_a_job
from bs_cluster.campaign.signals import stop_on_signals
from bs_cluster.errors import ClusterResourceError, Stopped, UsageError
from bs_cluster.replicas.application import Replicas, application
from bs_cluster.serving.settings import Settings
from bs_cluster.store.store import Store

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.5
ANSWER_TIMEOUT_S = 10


def serve_replicas(
    store: Store, settings: Settings, host: str, port: int, replicas: Replicas, ready: Callable[[], None]
) -> None:
    """Has Ray Serve listen there on every node, calls ``ready`` when the first replicas answer, and waits. The first
    signal lets running answers end, a second does not; either way no replica is left.

    Raises UsageError for a store that replicas would not find, or where Serve listens elsewhere already;
    ClusterResourceError where the replicas do not come up.
    """
    if not outlasts_a_job(store.uri):
        raise UsageError(f"--store {store.uri} is this job's own copy; name a folder or bucket that all nodes reach")
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
    client = _get_global_client()
    assert client is not None
    there = client.http_config
    if (there.host, there.port) != (host, port):
        told = f"Ray Serve listens on {there.host}:{there.port} here already, not on {host}:{port}"
        raise UsageError(f"{told}; name that, or run `serve shutdown` if nobody needs what it serves")
    try:
        with stop_on_signals():
            try:
                serve.run(application(store.uri, store.campaign, settings, replicas), name=store.campaign)
            except RuntimeError as error:
                raise ClusterResourceError(f"replicas of {store.campaign} do not come up: {error}") from error
            ready()
            signal.pause()
    except Stopped:
        if store.campaign in serve.status().applications:
            _drain(store.campaign, settings.drain)
    finally:
        serve.delete(store.campaign)


def _drain(campaign: str, drain_s: float) -> None:
    """Returns when running answers have ended, or are given up."""
    log.info("stopping: running answers may take at most %g s", drain_s)
    until = time.monotonic() + drain_s
    try:
        with stop_on_signals():
            handle = serve.get_app_handle(campaign)
            while time.monotonic() < until and _open(handle):
                time.sleep(LOOK_EVERY_S)
    except Stopped:
        log.info("stopping at once")


def _open(handle: DeploymentHandle) -> int:
    """Answers under way in all replicas, none of which begins another from now on."""
    told = handle.broadcast("drain").results(timeout_s=ANSWER_TIMEOUT_S, return_exceptions=True)
    return sum(count for count in told if isinstance(count, int))  # a replica that died has none
