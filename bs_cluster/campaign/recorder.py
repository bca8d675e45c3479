"""The driver's line to MLflow, its only writer. Being slow or away, MLflow costs a campaign nothing but the view.

Everything runs in order on one thread of its own. What is committed is never lost here: the store has it, and
``sync`` mirrors whatever MLflow lacks, so the store itself is the outbox.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import BrainstacksError, ConfigError, DiskError, RegistryError, RegistryUnavailable, Stopped
from bs_cluster.events import DomainClosed, Event, RoundEnded, RoundStarted, StepDone
from bs_cluster.records import StackId

if TYPE_CHECKING:
    from bs_cluster.registry import Registry
    from bs_cluster.registry.mirror import Status

KILLED_FLUSH_S = 10.0  # who stops a job does not wait for long
LIVE = ("loss", "selection_loss", "load_balance", "imbalance", "grad_norm", "learning_rate")
FLUSH_TIMEOUT_S = 300.0


def tracking_uri(config: CampaignConfig) -> str:
    """``registry.tracking_uri``, else ``MLFLOW_TRACKING_URI``, else sqlite beside a local store."""
    named = config.registry.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    if "://" in config.store.uri:
        raise ConfigError(
            [
                f"registry.tracking_uri is not set and store.uri {config.store.uri} is no folder to put sqlite into; "
                "set registry.tracking_uri or MLFLOW_TRACKING_URI"
            ]
        )
    return f"sqlite:///{Path(config.store.uri).resolve() / 'mlflow.db'}"


class Recorder:
    """Shows events as they come and mirrors the store whenever it changed; tries again at the next change."""

    def __init__(self, campaign: Campaign, say: Callable[[str], None]):
        self.uri = tracking_uri(campaign.config)
        self.config, self.store, self.say = campaign.config, campaign.store, say
        self._registry: Registry | None = None
        self._asked = self._away = False
        self._refusals: set[str] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        # Its one thread begins here, before a signal may raise: interrupted while it starts, the pool would forget it
        # and start a second one, and a round would be begun beside the end that was to end it.
        self._thread.submit(int).result()
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """However the campaign ends, its run does not go on showing as running."""
        if not self._asked:
            return  # MLflow has not heard of this run
        status: Status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, Stopped) else "FAILED"
        if kind is not None:  # the next run brings MLflow up to the store; now only the end is told
            for future in self._pending:
                future.cancel()
            self._pending.clear()
        self._later(lambda registry: registry.end_campaign(status))
        self._flush(KILLED_FLUSH_S if kind is not None else FLUSH_TIMEOUT_S)

    def record(self, event: Event) -> None:
        """Live metrics of a step, a run for a new round, a sync when something was committed."""
        match event:
            case RoundEnded() | DomainClosed():
                self.sync()
            case RoundStarted(stack):
                self._later(lambda registry: registry.round_started(stack, self.config))
            case StepDone(stack, step):
                numbers = {name: value for name in LIVE if (value := getattr(event, name)) is not None}
                numbers |= event.watched
                self._later(lambda registry: registry.log_metrics(stack, step, numbers))
            case _:
                pass

    def sync(self) -> None:
        self._later(lambda registry: registry.sync(self.store))

    def finish(self, report: Path | None = None, figures: Mapping[StackId, Path] | None = None) -> None:
        """Logs report and stack figures, mirrors what is missing and waits until MLflow has it, or is given up."""
        self.sync()
        for stack, folder in (figures or {}).items():
            self._later(partial(_log_figures, stack=stack, folder=folder))
        if report is not None:
            self._later(lambda registry: registry.log_report(report))
        self._flush(FLUSH_TIMEOUT_S)

    def _flush(self, timeout_s: float) -> None:
        _, late = wait(self._pending, timeout=timeout_s)
        if late:
            self.say(f"MLflow has not taken {len(late)} updates in {timeout_s:.0f} s; the next run goes on")
        for future in set(self._pending) - late:
            future.result()
        self._pending.clear()

    def _later(self, action: Callable[[Registry], Any]) -> None:
        self._asked = True
        self._pending = [future for future in self._pending if not future.done() or future.exception()]
        self._pending.append(self._thread.submit(self._act, action))

    def _act(self, action: Callable[[Registry], Any]) -> None:
        try:
            if self._registry is None:
                self._registry = self._open()
            action(self._registry)
            if self._away:
                self.say("MLflow is back and has been brought up to the store")
            self._away = False
        except RegistryUnavailable as error:
            if not self._away:
                self.say(f"MLflow is away; training goes on, the next run brings it up to the store ({error})")
            self._away = True
        except RegistryError as error:  # the store has everything: not a reason to fail a campaign
            self._refuse(error)
        except OSError as error:  # nor is a disk without room for what is uploaded
            if (told := DiskError.of(error)) is None:
                raise
            self._refuse(told)

    def _refuse(self, error: BrainstacksError) -> None:
        """Says once what MLflow does not show now, and why."""
        if str(error) not in self._refusals:
            self.say(f"MLflow is not brought up to the store now: {error}")
        self._refusals.add(str(error))

    def _open(self) -> Registry:
        from bs_cluster.registry import Registry  # noqa: PLC0415  # MLflow takes seconds to import

        registry = Registry(self.uri, self.config.campaign, self.config.registry.experiment, self.say)
        registry.open_campaign(self.config)
        return registry


def _log_figures(registry: Registry, stack: StackId, folder: Path) -> None:
    registry.log_figures(stack, folder)
