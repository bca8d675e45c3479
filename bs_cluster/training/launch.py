"""The Ray Train run of a campaign, and what its failures mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import BrainstacksError, ClusterResourceError, TrainingError
from bs_cluster.training.entry import run_worker
from bs_cluster.watchdog import TELL_S


def train_campaign(
    config: CampaignConfig,
    rows: Mapping[str, Any],
    coordinator: Any,
    storage: str,
    name: str,
    decided: Callable[[], int],
) -> None:
    """Runs workers until the coordinator (an actor's handle) has no step left. Blocks; restarts them up to
    ``training.max_failures`` times, and tries as often to bring a group up. ``decided`` counts the steps that are
    through: whenever there are more, failures are counted anew.

    ``name`` is the run's, by which Ray Train restores its state.
    Raises what a worker raised, where that is one of ours; TrainingError, ClusterResourceError.
    """
    while True:
        before = decided()
        try:
            _trainer(config, rows, coordinator, storage, name).fit()
            return
        except TrainingFailedError as error:
            failure = what_failed(error, config.training.start_timeout_s)
            crashed = isinstance(error, WorkerGroupError) and isinstance(failure, TrainingError)
            if not (crashed and config.training.max_failures and decided() > before):
                raise failure from error


def _trainer(
    config: CampaignConfig, rows: Mapping[str, Any], coordinator: Any, storage: str, name: str
) -> TorchTrainer:
    training = config.training
    most = training.num_workers
    each = {"CPU": training.cpus_per_worker} | ({"GPU": 1.0} if training.use_gpu else {})
    return TorchTrainer(
        run_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "rows": dict(rows), "coordinator": coordinator},
        torch_config=TorchConfig(
            backend="nccl" if training.use_gpu else "gloo",
            timeout_s=training.hang_timeout_s + int(2 * TELL_S),  # the watchdog, which has names, speaks first
        ),
        scaling_config=ScalingConfig(
            num_workers=(training.min_workers, most) if training.min_workers else most,
            elastic_resize_monitor_interval_s=training.resize_every_s,
            use_gpu=training.use_gpu,
            resources_per_worker=each,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(
                max_failures=training.max_failures,
                # Else Ray Train asks for ever for a group that cannot start, and holds what nodes there are. Where the
                # group may shrink, an attempt that fails is how it learns that nodes are gone: the driver watches.
                controller_failure_limit=training.max_failures if training.min_workers is None else -1,
            ),
        ),
    )


def what_failed(error: TrainingFailedError, start_timeout_s: int) -> BrainstacksError:
    """The error to tell a person: a worker's own, where it is one of ours."""
    if isinstance(error, WorkerGroupError):
        failures = {rank: _unwrapped(failure) for rank, failure in error.worker_failures.items()}
        ours = next((failure for failure in failures.values() if isinstance(failure, BrainstacksError)), None)
        if ours is not None:
            return ours
        listed = "; ".join(f"rank {rank}: {_line(failure)}" for rank, failure in sorted(failures.items()))
        return TrainingError(f"workers failed more than training.max_failures times; the last: {listed}")
    if isinstance(error, ControllerError):
        return ClusterResourceError(
            f"the training workers did not come up within {start_timeout_s} s each time (training.start_timeout_s): "
            f"{_line(error.controller_failure)}"
        )
    return TrainingError(_line(error))


def _unwrapped(failure: BaseException) -> BaseException:
    """Ray Train and Ray wrap a worker's exception, each in its own way."""
    for wrapped in ("_base_exc", "cause"):
        failure = getattr(failure, wrapped, None) or failure
    return failure


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
