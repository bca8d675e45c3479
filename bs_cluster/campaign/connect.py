"""Connecting to Ray, and the environment that a campaign's processes need."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ray

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import ConfigError
from bs_cluster.quiet import KEEP_FREED_MEMORY


def connect(config: CampaignConfig) -> None:
    """Joins the cluster of the job, or the one at ``RAY_ADDRESS``; starts a local one where there is none.

    Raises ConfigError for a store that a job's processes would not find again.
    """
    if not _lasting(config.store.uri):
        raise ConfigError(
            [
                f"store.uri = {config.store.uri!r} is relative, but a submitted job runs in a temporary copy of the "
                f"working directory; say store.uri=$PWD/{config.store.uri} or any filesystem URI that all nodes reach"
            ]
        )
    ray.init(runtime_env={"env_vars": process_environment(config)}, log_to_driver=False, logging_level=logging.WARNING)


def _lasting(uri: str) -> bool:
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return "://" in uri or Path(uri).is_absolute() or not submitted


def process_environment(config: CampaignConfig) -> dict[str, str]:
    """Variables that must be set before libraries are imported in worker processes."""
    variables = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.training.start_timeout_s),
    }
    if not config.training.use_gpu:
        variables |= {"DS_ACCELERATOR": "cpu", **KEEP_FREED_MEMORY}
    if config.training.threads_per_worker:
        variables["OMP_NUM_THREADS"] = str(config.training.threads_per_worker)
    return variables
