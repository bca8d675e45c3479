"""The HTTP face: OpenAI's endpoints under ``/v1``; ``/health``, ``/ready``, ``/metrics``; at ``/`` a page to try it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bs_cluster.errors import BrainstacksError
from bs_cluster.serving.champion import follow
from bs_cluster.serving.protocol import ApiError, Asked, ChatAsked, CompletionAsked, Reply, read
from bs_cluster.serving.service import Answer, Keys, Service

Made = TypeVar("Made")
MAX_BODY_BYTES = 1 << 20
GONE = 499  # nginx's status for a client that closed the connection: nobody reads it but the metrics
# The page is one file: nothing but its own lines runs or is loaded, and it talks to this server alone.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def build_app(service: Service) -> Starlette:
    page = (files("bs_cluster.serving") / "page.html").read_text()

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_described(service, id) for id in service.catalogue.models]})

    async def model(request: Request) -> Response:
        if (name := request.path_params["model"]) not in service.catalogue.models:
            return _told(ApiError(404, "model_not_found", f"the model {name!r} is not served", "model"))
        return JSONResponse(_described(service, name))

    async def health(_: Request) -> Response:
        alive = service.scheduler.alive
        return JSONResponse({"status": "ok" if alive else "the engine's thread has ended"}, 200 if alive else 503)

    async def ready(_: Request) -> Response:
        told = {"ready": service.ready, "bundle": service.catalogue.bundle("").number}
        return JSONResponse(told, 200 if service.ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(follow(service)) if service.settings.bundle is None else None
        yield
        if following is not None:
            following.cancel()

    api = [
        Route("/chat/completions", _endpoint(service, ChatAsked), methods=["POST"]),
        Route("/completions", _endpoint(service, CompletionAsked), methods=["POST"]),
        Route("/models", models),
        Route("/models/{model}", model),
    ]
    return Starlette(
        routes=[
            Route("/", show),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
            Mount("/v1", routes=api, middleware=[Middleware(KeyRequired, keys=service.keys)]),
        ],
        middleware=[Middleware(HostNamed, hosts=service.settings.hosts)],
        exception_handlers={HTTPException: _not_served, Exception: _own_fault},
        lifespan=lifespan,
    )


class HostNamed:
    """Answers only what was sent to one of these hosts. A page of another site can have its own name resolve to this
    machine, and then reads what its reader's browser is answered; but it cannot have it sent to another name."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]):
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent_to = Request(scope).headers.get("host", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or not self._hosts or _name(sent_to) in self._hosts:
            return await self._app(scope, receive, send)
        told = f"this server is not {sent_to!r}; who starts it can let that name in with --allow-host"
        await _told(ApiError(421, "misdirected_request", told))(scope, receive, send)


class KeyRequired:
    """Lets in who sends a known key as a bearer token."""

    def __init__(self, app: ASGIApp, keys: Keys):
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        admitted = self._keys.admit(Request(scope).headers.get("authorization", ""))
        refused = ApiError(401, "invalid_api_key", "no such API key; send one as 'Authorization: Bearer …'")
        await (self._app if admitted else _told(refused))(scope, receive, send)


def _endpoint(service: Service, kind: type[Asked]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        model = ""
        try:
            asked = read(kind, await _body(request))
            model = asked.model if asked.model in service.catalogue.models else ""
            response = await _answered(service, asked, request)
        except ApiError as error:
            response = _told(error)
        except BrainstacksError as error:  # the prompt does not fit the template, or the template the prompt
            response = _told(ApiError(400, "invalid_value", str(error)))
        service.metrics.requests.labels(model, response.status_code).inc()
        return response

    return endpoint


async def _answered(service: Service, asked: Asked, request: Request) -> Response:
    answer = service.begin(asked)
    try:
        await _unless_gone(request, answer.began())
        chat = isinstance(asked, ChatAsked)
        head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + answer.id,
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": f"bundle-{answer.model.bundle.number}",
        }
        reply = Reply(chat, head, answer.gates)
        if asked.stream:
            return Streamed(answer, reply)
        text = await _unless_gone(request, answer.whole())
        assert answer.ended is not None
        body = reply.whole(text, answer.ended.reason, answer.usage)
    except _Gone:
        answer.close()
        return Response(status_code=GONE)
    except BaseException:
        answer.close()
        raise
    answer.close()
    return JSONResponse(body)


class Streamed(StreamingResponse):
    """Server-sent events. However it ends, also where its client has gone before it began, the answer is closed."""

    def __init__(self, answer: Answer, reply: Reply):
        super().__init__(self._events(answer, reply), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()

    @staticmethod
    async def _events(answer: Answer, reply: Reply) -> AsyncIterator[str]:
        try:
            yield _event(reply.first())
            async for piece in answer.pieces():
                yield _event(reply.piece(piece))
            assert answer.ended is not None
            yield _event(reply.last(answer.ended.reason))
            if answer.asked.stream_options and answer.asked.stream_options.include_usage:
                yield _event(reply.used(answer.usage))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body())


class _Gone(Exception):
    """The client closed its connection."""


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Made]) -> Made:
    """What ``work`` gives, unless the client goes away first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _body(request: Request) -> bytes:
    """Raises ApiError where it is larger than any prompt that is served, or not said to be JSON: a page of another site
    may send what claims to be text from its reader's browser, and only that."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "invalid_value", "send Content-Type: application/json")
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise ApiError(413, "request_too_large", f"the body has more than {MAX_BODY_BYTES:,} bytes")
    return b"".join(parts)


def _described(service: Service, name: str) -> dict[str, Any]:
    """A model in OpenAI's shape, with what is ours beside it."""
    found, catalogue = service.catalogue.models[name], service.catalogue
    own = {"bundle": found.bundle.number, "domains": list(found.bundle.domains), "gates": found.gates}
    return {"id": name, "object": "model", "created": catalogue.since, "owned_by": catalogue.campaign, **own}


def _name(host: str) -> str:
    """A Host header without its port: ``[::1]:8000`` is ``::1``."""
    bare = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return bare.lower().rstrip(".")


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _told(error: ApiError) -> JSONResponse:
    more = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
    return JSONResponse(error.body(), error.status, headers=more.get(error.status))


async def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, "not_served", told).body(), error.status_code, error.headers)


async def _own_fault(_: Request, error: Exception) -> Response:
    return _told(ApiError(500, "server_error", f"the server met a {type(error).__name__}; its log says more"))
