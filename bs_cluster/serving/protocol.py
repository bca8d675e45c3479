"""OpenAI's requests and answers, as far as they are served, and ``gates``, which is ours.

What a request may not hold is refused by name; nothing is silently ignored that would change the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bs_cluster.data.rows import Prompt, Turn
from bs_cluster.serving.sampling import Sampling

# What clients send to say that they do not ask for it: then it may stand there.
OFF: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "logprobs": (None, False),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
}
A = TypeVar("A", bound="Asked")


class ApiError(Exception):
    """An answer with another status than 200, in OpenAI's shape."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class Asked(BaseModel):
    """What both endpoints take. ``PROMPT`` is the field that holds what is asked."""

    model_config = ConfigDict(extra="forbid")
    PROMPT: ClassVar[str] = "prompt"

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    gates: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None

    @property
    def sampling(self) -> Sampling:
        """OpenAI's defaults: temperature and top_p at 1, another draw each time."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(temperature, 1.0 if self.top_p is None else self.top_p, self.seed)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def longest(self) -> int | None:
        return self.max_tokens

    @property
    def asked(self) -> Prompt:
        raise NotImplementedError


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")  # what clients send back of answers: refusal, annotations

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def turn(self) -> Turn:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class ChatAsked(Asked):
    PROMPT: ClassVar[str] = "messages"
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def asked(self) -> Prompt:
        """A lone question as its text, as ``bs_cluster generate`` takes it."""
        turns = tuple(message.turn for message in self.messages)
        if turns[-1].role != "user" or not turns[-1].content.strip():
            raise ApiError(400, "invalid_value", "the last message must be a user's, and say something", self.PROMPT)
        return turns[0].content if len(turns) == 1 else turns


class CompletionAsked(Asked):
    prompt: str

    @property
    def asked(self) -> Prompt:
        if not self.prompt.strip():
            raise ApiError(400, "invalid_value", "the prompt is empty; say something", self.PROMPT)
        return self.prompt


def read(kind: type[A], body: bytes) -> A:
    """Raises ApiError, naming the field; what was sent is not repeated."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "invalid_value", "the body is no JSON") from None
    if isinstance(sent, dict):
        sent = {name: value for name, value in sent.items() if name not in OFF or value not in OFF[name]}
    try:
        return kind.model_validate(sent)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        param = ".".join(map(str, first["loc"][:1])) or None
        if first["type"] == "extra_forbidden":
            raise ApiError(400, "unsupported_parameter", f"{param} is not served here; leave it out", param) from None
        where = ".".join(map(str, first["loc"]))
        raise ApiError(400, "invalid_value", f"{where or 'the body'}: {first['msg']}", param) from None


class Reply:
    """The bodies of one answer: whole, or in chunks. ``head`` is what all of them begin with."""

    def __init__(self, chat: bool, head: Mapping[str, Any], gates: Mapping[str, float]):
        self.chat, self.head, self.gates = chat, head, dict(gates)

    def whole(self, text: str, reason: str, usage: Mapping[str, int]) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return {**self._of(chunk=False), "choices": [choice], "usage": usage}

    def first(self) -> dict[str, Any]:
        """Who speaks, and under which gates, before any text."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}} if self.chat else {"text": ""}, None)

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"delta": {"content": text}} if self.chat else {"text": text}, None)

    def last(self, reason: str) -> dict[str, Any]:
        return self._chunk({"delta": {}} if self.chat else {"text": ""}, reason)

    def used(self, usage: Mapping[str, int]) -> dict[str, Any]:
        return {**self._of(chunk=True), "choices": [], "usage": usage}

    def _chunk(self, said: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return {**self._of(chunk=True), "choices": [choice]}

    def _of(self, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {**self.head, "object": kind, "gates": self.gates}
