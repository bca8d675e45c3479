"""A server process: load the bundle, listen, follow the champion, and end when running answers have."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType

import uvicorn

from bs_cluster.errors import BrainstacksError, UsageError
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.serving.app import build_app
from bs_cluster.serving.catalogue import Catalogue
from bs_cluster.serving.engine import Engine
from bs_cluster.serving.metrics import Metrics
from bs_cluster.serving.runtime import bundle_config
from bs_cluster.serving.scheduler import Scheduler
from bs_cluster.serving.service import Keys, Limits, Service
from bs_cluster.store.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a server runs. ``prompt_tokens`` is None for what the campaign trained on; ``bundle`` None for whoever is
    champion. Seconds: ``reload_s`` between two looks at the store, ``drain_s`` for answers to end in."""

    host: str
    port: int
    device: str
    bundle: int | None
    keys: Sequence[str]
    max_running: int
    max_waiting: int
    prompt_tokens: int | None
    answer_tokens: int
    reload_s: float
    drain_s: float
    log_prompts: bool


def listen(host: str, port: int) -> socket.socket:
    """The address, taken but not yet answering. Raises UsageError where it cannot be had."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise UsageError(f"--host {host} --port {port}: {error.strerror or error}; name another") from error
    return bound


def load(store: Store, settings: Settings) -> Service:
    """The bundle in memory and its engine's thread started."""
    catalogue, metrics = Catalogue(store, settings.bundle), Metrics()
    wanted = catalogue.wanted()
    config = bundle_config(store, store.bundle(wanted[""]))
    # The engine makes its own masks, which this kernel takes on every device.
    stacked = StackedBase.load(config.base.model_copy(update={"attention": "sdpa"}), settings.device)
    catalogue.load(wanted, stacked)
    limits = Limits(settings.prompt_tokens or config.data.max_prompt_length, settings.answer_tokens)
    length = limits.prompt_tokens + limits.answer_tokens
    reach = stacked.base.model.config.get_text_config().max_position_embeddings
    if length > reach:
        raise UsageError(
            f"prompts of {limits.prompt_tokens} and answers of {limits.answer_tokens} tokens are more than the {reach} "
            "of the base; lower --max-prompt-tokens or --max-tokens"
        )
    scheduler = Scheduler(Engine(stacked, settings.max_running, length), settings.max_waiting, metrics)
    scheduler.start()
    service = Service(catalogue, scheduler, metrics, limits, Keys(settings.keys), settings.log_prompts)
    _show_bundles(service)
    return service


def run(service: Service, settings: Settings, listening: socket.socket) -> None:
    """Serves until a signal: the first lets running answers end, a second does not."""
    config = uvicorn.Config(
        build_app(service),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    try:
        Server(config, service, settings).run(sockets=[listening])
    finally:
        service.scheduler.stop()


async def follow(service: Service, every_s: float) -> None:
    """Serves what the store says is to be served, also when that changes. Requests that run keep their bundle; what
    cannot be read or loaded is told, and what was served before stays."""
    catalogue, scheduler = service.catalogue, service.scheduler
    while True:
        await asyncio.sleep(every_s)
        try:
            wanted = await asyncio.to_thread(catalogue.wanted)
            if wanted == catalogue.serving:
                continue
            loading = scheduler.call(partial(catalogue.load, wanted, scheduler.engine.stacked))
            await asyncio.wrap_future(loading)
        except (BrainstacksError, OSError) as error:
            service.metrics.reloads.labels("failed").inc()
            log.warning("what the store wants to be served cannot be; what was is: %s", error)
        else:
            service.metrics.reloads.labels("done").inc()
            _show_bundles(service)


def _show_bundles(service: Service) -> None:
    catalogue = service.catalogue
    for alias in catalogue.serving:
        number, name = catalogue.bundle(alias).number, alias or "default"
        service.metrics.bundle.labels(name).set(number)
        log.info("%s: bundle %d", name, number)


class Server(uvicorn.Server):
    """Uvicorn, but a signal closes the door only when those inside are done: until then new requests get a 503 that
    says so, and ``/ready`` tells whoever sends requests here to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, settings: Settings):
        super().__init__(config)
        self._service, self._settings, self._until = service, settings, 0.0
        self._following: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._settings.bundle is None:
            self._following = asyncio.create_task(follow(self._service, self._settings.reload_s))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._following is not None:
            self._following.cancel()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining, self._until = True, time.monotonic() + self._settings.drain_s
        log.info("stopping: %d answers run to their end, for at most %g s", self._service.open, self._settings.drain_s)

    async def on_tick(self, counter: int) -> bool:
        if self._service.draining and (not self._service.open or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)
