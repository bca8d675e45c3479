"""The driver's line to MLflow, its only writer. Being without MLflow costs a campaign nothing but the view."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import ConfigError, RegistryUnavailable
from bs_cluster.records import StackId
from bs_cluster.store.store import Store

if TYPE_CHECKING:
    from bs_cluster.registry import Registry


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
    """Shows events as they come and mirrors the store whenever it changed. Retries at the next change after a loss."""

    def __init__(self, config: CampaignConfig, store: Store, say: Callable[[str], None]):
        self.uri = tracking_uri(config)
        self.config, self.store, self.say = config, store, say
        self.registry: Registry | None = None
        self.away = False

    def open(self) -> None:
        if "sqlite:///" in self.uri:
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._try(self._open)

    def _open(self) -> None:
        from bs_cluster.registry import Registry  # noqa: PLC0415  # MLflow takes seconds to import

        registry = Registry(self.uri, self.config.campaign, self.config.registry.experiment)
        registry.open_campaign(self.config.model_dump(mode="json"))
        registry.sync(self.store)
        self.registry = registry

    def record(self, event: dict[str, Any]) -> None:
        """Live metrics of a step, a run for a new round, a sync when something was committed."""
        kind = event.get("kind")
        if kind in ("outcome", "closed"):
            self.sync()
        elif self.registry is not None and kind in ("round", "step"):
            registry, stack = self.registry, _stack_id(event["stack"])
            if kind == "round":
                self._try(lambda: registry.round_started(stack, {"domain": stack.domain, "round": stack.round}))
            else:
                numbers = {k: v for k, v in event.items() if k in LIVE and isinstance(v, float)}
                self._try(lambda: registry.log_metrics(stack, int(event["step"]), numbers))

    def sync(self) -> None:
        if self.registry is None:
            self._try(self._open)
        else:
            registry = self.registry
            self._try(lambda: registry.sync(self.store))

    def log_report(self, directory: Path) -> None:
        if self.registry is not None:
            registry = self.registry
            self._try(lambda: registry.log_report(directory))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
            if self.away:
                self.say("MLflow is back; it has been brought up to the store")
            self.away = False
        except RegistryUnavailable as error:
            if not self.away:
                self.say(f"MLflow is away, training goes on and it is brought up to the store later: {error}")
            self.away = True


LIVE = {"loss", "val_loss", "load_balance", "imbalance", "grad_norm", "learning_rate"}


def _stack_id(name: str) -> StackId:
    domain, _, number = name.rpartition("_r")
    return StackId(domain, int(number))
