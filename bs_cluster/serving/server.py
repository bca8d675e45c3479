"""A server process of its own: listen, and end when running answers have."""

from __future__ import annotations

import logging
import socket
import time
from types import FrameType

import uvicorn

from bs_cluster.errors import UsageError
from bs_cluster.serving.app import build_app
from bs_cluster.serving.service import Service

log = logging.getLogger(__name__)


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


def run(service: Service, listening: socket.socket, drain_s: float) -> None:
    """Serves until a signal: the first lets running answers end, for at most ``drain_s``; a second does not."""
    config = uvicorn.Config(
        build_app(service),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    try:
        Server(config, service, drain_s).run(sockets=[listening])
    finally:
        service.scheduler.stop()


class Server(uvicorn.Server):
    """Uvicorn, but a signal closes the door only when those inside are done: until then new requests get a 503 that
    says so, and ``/ready`` tells whoever sends requests here to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_s: float):
        super().__init__(config)
        self._service, self._drain_s, self._until = service, drain_s, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining, self._until = True, time.monotonic() + self._drain_s
        log.info("stopping: %d answers run to their end, for at most %g s", self._service.open, self._drain_s)

    async def on_tick(self, counter: int) -> bool:
        if self._service.draining and (not self._service.open or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)
