"""The server in replicas: an application of Ray Serve, each replica an engine with the single process's own app.

    serve.run(application(uri, "embedded", Settings(), Replicas(1, 4)), name="embedded")

``build`` is what a Serve config file names; cluster/serve.yaml is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ray import serve
from starlette.applications import Starlette

from bs_cluster.errors import ConfigError, UsageError
from bs_cluster.quiet import KEEP_FREED_MEMORY, quieten, say_on_stderr
from bs_cluster.replicas.metrics import RayMetrics
from bs_cluster.serving.app import build_app
from bs_cluster.serving.champion import load
from bs_cluster.serving.metrics import Metrics
from bs_cluster.serving.settings import KEY_VARIABLE, Settings, keys_of_environment
from bs_cluster.store.store import Store

ENGINE = "engine"
# A replica takes so many more than its engine does: those it refuses itself, in OpenAI's words and with 429.
REFUSED_AT_ONCE = 32


class Engine:
    """One replica."""

    def __init__(self, store_uri: str, campaign: str, settings: Settings):
        quieten()
        say_on_stderr()
        self._service = load(Store(store_uri, campaign), settings, Metrics(RayMetrics()))

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_app(self._service)

    def check_health(self) -> None:
        """Asked by Ray every few seconds; a replica that raises is replaced."""
        if not self._service.scheduler.alive:
            raise RuntimeError("the engine's thread has ended")

    async def drain(self) -> int:
        """No new answer begins from now on, until the replica goes; how many are under way."""
        self._service.draining = True
        return self._service.open

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.scheduler.stop()


@dataclass(frozen=True)
class Replicas:
    """At least and at most so many, each with ``cpus`` and, on ``cuda``, a GPU."""

    least: int = 1
    most: int = 1
    cpus: float = 1.0


def application(store_uri: str, campaign: str, settings: Settings, replicas: Replicas) -> serve.Application:
    """Where ``replicas`` leaves a choice, Ray has as many as keep the requests of each, running and waiting, at what
    its engine runs at once."""
    environment = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", **KEEP_FREED_MEMORY}
    scaled: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.least < replicas.most:
        bounds = {"min_replicas": replicas.least, "max_replicas": replicas.most}
        scaled = {"autoscaling_config": {**bounds, "target_ongoing_requests": settings.max_running}}
    deployment = serve.deployment(
        name=ENGINE,
        max_ongoing_requests=settings.max_running + settings.max_waiting + REFUSED_AT_ONCE,
        graceful_shutdown_timeout_s=settings.drain,
        ray_actor_options={
            "num_cpus": replicas.cpus,
            "num_gpus": float(settings.device.startswith("cuda")),
            "runtime_env": {"env_vars": environment},
        },
        **scaled,
    )(serve.ingress()(Engine))
    return deployment.bind(store_uri, campaign, settings)


def build(arguments: dict[str, Any]) -> serve.Application:
    """For a Serve config file: ``args`` are the store, the campaign and any of the settings; the keys come from the
    environment, since everybody on the cluster may read the file. How many replicas is the file's to say.

    Raises ConfigError for what is no setting, UsageError where there is no key.
    """
    settings = dict(arguments)
    if lacking := [f"args.{name}: is missing" for name in ("store", "campaign") if name not in settings]:
        raise ConfigError(lacking)
    if "keys" in settings:
        raise ConfigError([f"args.keys: everybody on the cluster reads this file; set {KEY_VARIABLE} where it starts"])
    store_uri, campaign = settings.pop("store"), settings.pop("campaign")
    try:
        read = TypeAdapter(Settings).validate_python({**settings, "keys": keys_of_environment()})
    except ValidationError as error:
        wrong = [f"args.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError(wrong) from error
    if not read.keys:
        raise UsageError(f"whoever reaches the cluster would be let in: set {KEY_VARIABLE} where it starts")
    return application(store_uri, campaign, read, Replicas())
