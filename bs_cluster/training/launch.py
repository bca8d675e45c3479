"""Starts the workers of a campaign: the resource plan, pure, and the Ray Train run that carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from bs_cluster.config.identity import config_digest
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import ClusterResourceError
from bs_cluster.training.entry import run_worker


@dataclass(frozen=True)
class Plan:
    """Workers and what each of them holds."""

    workers: int
    cpus: float
    gpus: float


def resource_plan(config: CampaignConfig, available: Mapping[str, float], autoscales: bool) -> Plan:
    """What training takes, checked against what the cluster has now (or may grow to, when it autoscales).

    Raises ClusterResourceError naming what is missing and the setting to change.
    """
    training = config.training
    plan = Plan(training.num_workers, training.cpus_per_worker, 1.0 if training.use_gpu else 0.0)
    for kind, each, key in (("GPU", plan.gpus, "use_gpu=false"), ("CPU", plan.cpus, "cpus_per_worker")):
        wanted, present = plan.workers * each, available.get(kind, 0.0)
        if wanted > present and not autoscales:
            raise ClusterResourceError(
                f"{wanted:g} {kind}s wanted by {plan.workers} training workers, the cluster has {present:g}; "
                f"lower training.num_workers, set training.{key}, or add nodes (max_workers)"
            )
    return plan


def train_campaign(config: CampaignConfig, plan: Plan, rows: Mapping[str, Any], coordinator: Any, storage: str) -> None:
    """Runs workers until the coordinator has no step left. Blocks; restarts them up to ``training.max_failures``.

    The run's name carries the config's digest: Ray Train restores state by name, and a changed config is another run.
    """
    name = f"{config.campaign}-{config_digest(config)[:12]}"
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "rows": dict(rows), "coordinator": coordinator},
        torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=bool(plan.gpus),
            resources_per_worker={"CPU": plan.cpus} | ({"GPU": plan.gpus} if plan.gpus else {}),
        ),
        run_config=RunConfig(
            name=name, storage_path=storage, failure_config=FailureConfig(max_failures=config.training.max_failures)
        ),
    )
    trainer.fit()
