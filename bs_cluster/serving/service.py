"""From a request as it was sent to one that runs, and back: limits, model ids, gates, encoding, who is still there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from bs_cluster.data.encode import MAX_CHARACTERS_PER_TOKEN, encode_prompt
from bs_cluster.data.rows import plain_text
from bs_cluster.serving.catalogue import Catalogue, Model
from bs_cluster.serving.metrics import Metrics
from bs_cluster.serving.protocol import ApiError, Asked
from bs_cluster.serving.runtime import BundleRuntime
from bs_cluster.serving.scheduler import Began, Busy, Ended, Event, Failed, Piece, Request, Scheduler
from bs_cluster.serving.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """``prompt_tokens`` and ``answer_tokens`` of one request at most."""

    prompt_tokens: int
    answer_tokens: int


class Keys:
    """API keys; none lets everybody in. Comparing takes as long whatever was sent."""

    def __init__(self, keys: Sequence[str]):
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def admit(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        known = [hmac.compare_digest(digest, own) for own in self._digests]
        return not known or (any(known) and scheme.lower() == "bearer")


class Service:
    """``open`` is how many answers are under way; while it drains, no new one begins."""

    def __init__(
        self,
        catalogue: Catalogue,
        scheduler: Scheduler,
        metrics: Metrics,
        limits: Limits,
        settings: Settings,
    ):
        self.catalogue, self.scheduler, self.metrics = catalogue, scheduler, metrics
        self.limits, self.settings, self.keys = limits, settings, Keys(settings.keys)
        self.draining, self.open = False, 0

    @property
    def ready(self) -> bool:
        return self.scheduler.alive and not self.draining

    def begin(self, asked: Asked) -> Answer:
        """Puts a request in line. Raises ApiError where it cannot be served; close the answer in the end."""
        if not self.ready:
            raise ApiError(503, "unavailable", "this server is stopping; ask another, or again in a while")
        model = self.catalogue.models.get(asked.model)
        if model is None:
            known = ", ".join(self.catalogue.models)
            raise ApiError(404, "model_not_found", f"no model {asked.model!r}; there are {known}", "model")
        answer = Answer(self, asked, model)
        try:
            self.scheduler.submit(answer.request)
        except Busy as error:
            raise ApiError(429, "rate_limit_exceeded", str(error)) from error
        self.open += 1
        return answer

    def gates(self, asked: Asked, model: Model) -> Mapping[str, float] | None:
        """The gates that a request fixes, by its model or by ``gates``, of every domain; None for the meta-router's."""
        if asked.gates is None:
            return model.gates
        if model.gates is not None:
            raise ApiError(400, "invalid_value", f"{model.id} fixes the gates already; name the campaign", "gates")
        domains = model.bundle.domains
        if unknown := sorted(set(asked.gates) - set(domains)):
            told = f"domain {unknown[0]!r} is not in the bundle; it has {', '.join(domains)}"
            raise ApiError(400, "invalid_value", told, "gates")
        return {domain: asked.gates.get(domain, 0.0) for domain in domains}

    def prompt_ids(self, asked: Asked, bundle: BundleRuntime) -> list[int]:
        """A prompt as it was encoded in training, but refused where training would have cut it."""
        prompt, limit = asked.asked, self.limits.prompt_tokens
        characters = len(plain_text(prompt))
        if characters <= MAX_CHARACTERS_PER_TOKEN * limit:
            data = bundle.config.data.model_copy(update={"max_prompt_length": max(limit, characters) * 8})
            ids = encode_prompt(prompt, bundle.stacked.base.tokenizer, data)
            if len(ids) <= limit:
                return ids
            told = f"this prompt has {len(ids)} tokens with its template"
        else:
            told = f"this prompt has {characters:,} characters"
        raise ApiError(400, "context_length_exceeded", f"{told}; at most {limit} tokens are served", asked.PROMPT)

    def longest(self, asked: Asked) -> int:
        limit = self.limits.answer_tokens
        if (asked.longest or 0) > limit:
            raise ApiError(400, "invalid_value", f"max_tokens {asked.longest}: at most {limit}", "max_tokens")
        return asked.longest or limit


class Answer:
    """One request as the event loop sees it; what the engine's thread tells comes in through a queue."""

    def __init__(self, service: Service, asked: Asked, model: Model):
        self._service, self.asked, self.model = service, asked, model
        self.id = uuid.uuid4().hex
        self.gates: Mapping[str, float] = {}
        self.ended: Ended | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._said: list[str] = []
        self._closed = False
        self.request = Request(
            bundle=model.bundle,
            prompt_ids=service.prompt_ids(asked, model.bundle),
            router_ids=model.bundle.router_ids(asked.asked),
            gates=service.gates(asked, model),
            sampling=asked.sampling,
            max_tokens=service.longest(asked),
            stops=asked.stops,
            tell=self._tell,
        )

    def _tell(self, event: Event) -> None:
        """Called by the engine's thread; where the loop has ended, nobody waits any more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def began(self) -> None:
        """Waits for a slot. Raises ApiError where the answer failed."""
        event = await self._next()
        assert isinstance(event, Began)
        self.gates = event.gates

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes. Raises ApiError where the answer failed."""
        while self.ended is None:
            match await self._next():
                case Piece(text=text):
                    self._said.append(text)
                    yield text
                case Ended() as ended:
                    self.ended = ended

    async def whole(self) -> str:
        return "".join([piece async for piece in self.pieces()])

    async def _next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, Failed):
            raise ApiError(500, "server_error", event.message)
        return event

    @property
    def usage(self) -> dict[str, int]:
        read, made = len(self.request.prompt_ids), self.ended.tokens if self.ended else 0
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def close(self) -> None:
        """Whether it ended or its client went away: once, and then nothing of it runs."""
        if self._closed:
            return
        self._closed = True
        self._service.open -= 1
        if self.ended is None:
            self._service.scheduler.cancel(self.request)
        self._account()

    def _account(self) -> None:
        seconds, metrics = time.perf_counter() - self.request.asked_at, self._service.metrics
        metrics.request_seconds.observe(seconds)
        metrics.tokens.labels("prompt").inc(len(self.request.prompt_ids))
        for domain, weight in self.gates.items():
            metrics.fired.labels(domain).inc(weight)
        fired = " ".join(f"{domain} {weight:.2f}" for domain, weight in self.gates.items() if weight) or "no domain"
        how = f"{self.ended.tokens} tokens, {self.ended.reason}" if self.ended else "not finished"
        log.info("%s %s: %s; %s, %.2f s", self.id[:8], self.model.id, fired, how, seconds)
        if self._service.settings.log_prompts:
            log.info("%s %r -> %r", self.id[:8], plain_text(self.asked.asked), "".join(self._said))
