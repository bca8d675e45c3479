"""Asks every node of the cluster that is named, or this machine where none is, and tells what was found."""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bs_cluster.campaign.connect import process_environment
from bs_cluster.campaign.nodes import head_node, read_cluster
from bs_cluster.campaign.recorder import tracking_uri
from bs_cluster.campaign.resources import Cluster, refuse_impossible, sweep_ask, training_ask
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.doctor.checks import Check, Clock, check_gpus, check_nodes
from bs_cluster.doctor.facts import Facts, Node
from bs_cluster.errors import BrainstacksError, ClusterResourceError
from bs_cluster.planning.memory import WORD
from bs_cluster.planning.work import rounds
from bs_cluster.planning.worker import ShapedWorker
from bs_cluster.registry import check_tracking
from bs_cluster.store.store import Store

ANSWER_S = 120.0  # a worker process starts and imports torch
LOOKS = 5  # at a clock, of which the quickest counts
HERE = "this machine"


def examine(config: CampaignConfig, address: str | None) -> list[Check]:
    """Every check, of the cluster at ``address`` (Ray's), or without one of this machine alone."""
    if address is None:
        return _examined(config, None)
    try:
        environment = {"env_vars": process_environment(config)}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        way = "start it, name another with --address, or give it the cluster's token (RAY_AUTH_MODE, RAY_AUTH_TOKEN)"
        return [Check("ray", "", False, f"{address} cannot be joined ({_line(error)}); {way}")]
    try:
        return _examined(config, head_node()["NodeID"])
    finally:
        ray.shutdown()


def _examined(config: CampaignConfig, head: str | None) -> list[Check]:
    marker = f"doctor-{uuid.uuid4().hex[:8]}"
    checks = [_told("mlflow", lambda: check_tracking(tracking_uri(config)))]
    with _marked(config, marker) as unmarked:
        settings = config.model_dump(mode="json")
        found, clocks, silent = _of_cluster(settings, marker, head) if head else _of_machine(settings, marker)
    checks += [Check("node", node, False, told) for node, told in silent.items()]
    if unmarked and not any("store" in facts.troubles for facts in found.values()):
        checks.append(Check("store", "", False, unmarked))
    cluster = read_cluster_of(found) if head is None else read_cluster()
    checks.append(_told("resources", lambda: _enough(config, cluster)))
    counted = {_label(node): node["Resources"].get("GPU", 0.0) for node in _alive(head)} if head else {}
    checks += check_gpus(found, counted)
    return [*check_nodes(found, clocks, wanted_disk(config)), *checks] if found else checks


@contextmanager
def _marked(config: CampaignConfig, marker: str) -> Iterator[str]:
    """The driver's word lies in the store while it lasts; what hindered it, else nothing."""
    area, trouble = Store(config.store.uri, config.campaign).round_area(marker), ""
    try:
        area.write(marker, b"seen")
    except BrainstacksError as error:
        trouble = _line(error)
    try:
        yield trouble
    finally:
        if not trouble:
            area.clear()


def _of_machine(settings: dict[str, Any], marker: str) -> tuple[dict[str, Facts], dict[str, Clock], dict[str, str]]:
    return {HERE: Node(settings, marker).facts()}, {}, {}


def _of_cluster(
    settings: dict[str, Any], marker: str, head: str
) -> tuple[dict[str, Facts], dict[str, Clock], dict[str, str]]:
    """What each living node says, its clock, and why one is silent; the head first."""
    asked = {}
    for node in _alive(head):
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote: Any = ray.remote(Node)
        actor = remote.options(num_cpus=0, scheduling_strategy=here).remote(settings, marker)
        asked[_label(node)] = (actor, actor.facts.remote())
    found, clocks, silent = {}, {}, {}
    for node, (actor, answer) in asked.items():
        try:
            found[node] = ray.get(answer, timeout=ANSWER_S)
            clocks[node] = min((_clock(actor) for _ in range(LOOKS)), key=lambda clock: clock.error)
        except RayError as error:
            silent[node] = f"does not answer ({_line(error)}); see ray status, and its log under /tmp/ray"
        ray.kill(actor)
    return found, clocks, silent


def _alive(head: str) -> list[dict[str, Any]]:
    return sorted((n for n in ray.nodes() if n["Alive"]), key=lambda node: (node["NodeID"] != head, node["NodeID"]))


def _label(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} {node['NodeID'][:6]}"


def _clock(actor: Any) -> Clock:
    before = time.time()
    there: Any = ray.get(actor.now.remote(), timeout=ANSWER_S)
    after = time.time()
    return Clock(there - (before + after) / 2, (after - before) / 2)


def _enough(config: CampaignConfig, cluster: Cluster) -> str:
    """What both phases ask for against what there is and may come. Raises ClusterResourceError."""
    asks = (training_ask(config), sweep_ask(config))
    refuse_impossible(asks, cluster)
    lacking = [ask for ask in asks if cluster.has_room(ask) < ask.least]
    if lacking and not cluster.grows:
        raise ClusterResourceError(f"{lacking[0]} wanted, there is room for {cluster.has_room(lacking[0])} now")
    return f"{asks[0]}, then {asks[1]}: {cluster}"


def read_cluster_of(found: Mapping[str, Facts]) -> Cluster:
    """A machine without Ray, as it would be one node."""
    nodes = tuple({"CPU": float(facts.cpus), "GPU": float(facts.gpus)} for facts in found.values())
    return Cluster(nodes[0], nodes, most_workers=math.inf)


def wanted_disk(config: CampaignConfig) -> int:
    """Bytes of a base's files in 16 bits and of every stack; nothing where the base is not known."""
    try:
        worker = ShapedWorker(config, gpu=config.training.use_gpu)
    except BrainstacksError:
        return 0
    return 2 * worker.base_parameters + rounds(config) * WORD * worker.stack_parameters


def named_address() -> str | None:
    """Of the job that this is, or of ``RAY_ADDRESS``."""
    return "auto" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else os.environ.get("RAY_ADDRESS")


def _told(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "", True, check())
    except BrainstacksError as error:
        return Check(name, "", False, _line(error))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
