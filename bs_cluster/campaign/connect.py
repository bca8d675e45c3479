"""Connecting to Ray, and the environment that a campaign's processes need."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError

from bs_cluster import failpoints
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import ClusterResourceError, ConfigError, DiskError
from bs_cluster.quiet import KEEP_FREED_MEMORY

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


def connect(config: CampaignConfig) -> None:
    """Joins the cluster of the job, or the one at ``RAY_ADDRESS``; starts a local one where there is none.

    Raises ConfigError for a store that a job's processes would not find again, UsageError for failpoints that there are
    not.
    """
    if not outlasts_a_job(config.store.uri):
        raise ConfigError(
            [
                f"store.uri = {config.store.uri!r} is relative, but a submitted job runs in a temporary copy of the "
                f"working directory; say store.uri=$PWD/{config.store.uri} or any filesystem URI that all nodes reach"
            ]
        )
    os.environ[START_TIMEOUT] = _start_timeout_s(config)  # Ray Train passes on what the driver has
    ray.init(runtime_env={"env_vars": process_environment(config)}, log_to_driver=False, logging_level=logging.WARNING)


@contextmanager
def loss_in_words() -> Iterator[None]:
    """A cluster, or a part of it, that is gone under a campaign is no defect: raises ClusterResourceError for what Ray
    makes of it, and DiskError where a task or an actor met a disk that is full or broken. What else one raised stays
    what it is."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, OSError) and (told := DiskError.of(error.cause)) is not None:
            raise told from error
        raise
    except RayError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        # Where an actor could not begin, a traceback follows, and what it ends with is why.
        why = said[-1] if "its creation task" in said[0] else said[0]
        raise ClusterResourceError(
            f"the cluster, or a process of this campaign on it, is gone ({why}); run the same command to go on"
        ) from error


def outlasts_a_job(uri: str) -> bool:
    """Whether a submitted job, which runs in a copy of its working directory, finds this store and leaves it there."""
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return "://" in uri or Path(uri).is_absolute() or not submitted


def _start_timeout_s(config: CampaignConfig) -> str:
    """What workers may take to come up. Where their number may change, Ray Train asks for as many as it last saw room
    for: it counts again when an attempt has failed, and a node that died must not be waited for."""
    training = config.training
    return str(training.start_timeout_s if training.min_workers is None else min(60, training.start_timeout_s))


def process_environment(config: CampaignConfig) -> dict[str, str]:
    """Variables that must be set before libraries are imported in worker processes."""
    variables = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        START_TIMEOUT: _start_timeout_s(config),
    }
    if not config.training.use_gpu:
        variables |= {"DS_ACCELERATOR": "cpu", **KEEP_FREED_MEMORY}
    if config.training.threads_per_worker:
        variables["OMP_NUM_THREADS"] = str(config.training.threads_per_worker)
    return variables | failpoints.environment()
