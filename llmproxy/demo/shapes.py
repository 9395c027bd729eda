"""What the demo server says: deterministic text, and what all of vLLM 0.32's APIs have in common.  Pure.

Each API's own shapes are in a module of their own: :mod:`llmproxy.demo.completions`,
:mod:`llmproxy.demo.messages`, :mod:`llmproxy.demo.responses` and :mod:`llmproxy.demo.singles`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, Protocol

from attrs import evolve, field, frozen

__all__ = [
    "DONE",
    "ENGINE_DEAD",
    "BadRequest",
    "Form",
    "Plan",
    "content",
    "engine_error",
    "error",
    "event",
    "garbled",
    "invalid",
    "models",
    "plan",
    "reply",
    "served",
    "tokens",
]

DONE = b"data: [DONE]\n\n"
FINGERPRINT = "vllm-demo"
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class BadRequest(Exception):
    """The request is refused as vLLM refuses it.

    :ivar status: HTTP status code.
    :ivar body: vLLM's error object.
    """

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error(status, kind, message, param)


class Form(Protocol):
    """How one of vLLM's APIs writes an answer."""

    def answer(self, what: Plan) -> dict[str, Any]:
        """The whole answer of a request that does not stream."""

    def events(self, what: Plan) -> Iterator[bytes]:
        """The event stream.  Empty bytes come before each token, where the pause for it belongs; what belongs
        to the token is one piece."""

    def aborted(self, what: Plan, written: int) -> Iterator[bytes]:
        """How a stream ends that a sleep with ``mode=abort`` ends after so many tokens."""

    def died(self) -> bytes | None:
        """What ends a stream whose engine has died; ``None``: nothing, not even an end of message."""

    def error(self, found: dict[str, Any]) -> dict[str, Any]:
        """An error object of vLLM's in this API's words."""


@frozen
class Plan:
    """One answer, worked out before its first byte is sent.

    :ivar ident: ``chatcmpl-...``, ``cmpl-...``, ``resp_...`` and so on.
    :ivar created: POSIX seconds.
    :ivar form: the API's.
    :ivar prompt_tokens: words of the prompt.
    :ivar pieces: the tokens, each with the white space in front of it.
    :ivar finish: vLLM's ``finish_reason``.
    :ivar asked: the request.
    """

    ident: str
    created: int
    model: str
    form: Form
    stream: bool
    prompt_tokens: int
    pieces: Sequence[str]
    finish: str
    asked: Mapping[str, Any] = field(factory=dict, repr=False)

    @property
    def text(self) -> str:
        """All that is said."""
        return "".join(self.pieces)

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's ``usage`` object."""
        count = len(self.pieces)
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + count,
            "completion_tokens": count,
        }


def error(status: int, kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    """vLLM's error object; ``code`` is the HTTP status there, not a word."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def engine_error() -> dict[str, Any]:
    """What vLLM sends when its engine process has died under a request."""
    return error(500, "InternalServerError", ENGINE_DEAD)


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    named = b"" if name is None else f"event: {name}\n".encode()
    return named + b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def tokens(text: str) -> list[str]:
    """Words with the white space in front of each: joined, they are the text without trailing space."""
    return re.findall(r"\s*\S+", text)


def models(names: Sequence[str], created: int) -> dict[str, Any]:
    """The answer to ``/v1/models``."""
    data: list[dict[str, Any]] = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": names[0],
            "parent": None,
            "max_model_len": 131072,
            "permission": [],
        }
        for name in names
    ]
    return {"object": "list", "data": data}


def content(message: object) -> str:
    """The text of a message, whatever API's."""
    found = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return " ".join(str(part.get("text", "")) for part in found if isinstance(part, Mapping))
    return ""


def reply(messages: Sequence[object], model: str) -> tuple[str, str]:
    """What a conversation has said so far, and what the model says to its last word."""
    asked = [content(m) for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    said = asked[-1] if asked else content(messages[-1])
    answer = (
        f"You said: {said.strip()}\n\n"
        f"I am {model}, a demo model of llmproxy: I repeat your words, one token at a time, as vLLM would. "
        "With a real model behind this route, its answer streams here."
    )
    return " ".join(content(m) for m in messages), answer


def invalid(what: str, param: str) -> BadRequest:
    """The refusal of a request that is not of the right shape."""
    return BadRequest(400, "Bad Request", f"1 validation error:\n  {what}", param)


def served(body: Mapping[str, Any], names: Sequence[str]) -> str:
    """The model that is asked for; vLLM accepts a request that names none.

    :raises BadRequest: it is not served.
    """
    model = body.get("model")
    if model is None:
        return names[0]
    if model not in names:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(names)}."
        raise BadRequest(404, "NotFoundError", message, "model")
    return str(model)


def _limit(body: Mapping[str, Any], fields: Sequence[str]) -> int | None:
    for name in fields:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadRequest(
                400, "BadRequestError", f"{name} must be at least 1, got {value!r}.", "max_tokens"
            )
        return value
    return None


def plan(
    body: Mapping[str, Any],
    names: Sequence[str],
    texts: Callable[[str], tuple[str, str]],
    *,
    form: Form,
    ident: str,
    created: int,
    limits: Sequence[str] = ("max_completion_tokens", "max_tokens"),
) -> Plan:
    """Work out an answer.

    The reply echoes the prompt.  ``max_tokens`` cuts it; with ``ignore_eos`` (vLLM's own field) as well, the
    reply is repeated until there are exactly ``max_tokens`` tokens, or 16 (vLLM's default) without it.

    :param texts: prompt and reply by the model's name.
    :param limits: the fields that tell the number of tokens.
    :raises BadRequest: with vLLM's status and error object.
    """
    model = served(body, names)
    prompt, said = texts(model)
    limit, pieces, finish = _limit(body, limits), tokens(said), "stop"
    if body.get("ignore_eos"):
        pieces, finish = list(islice(cycle(pieces), limit or 16)), "length"
    elif limit is not None and limit < len(pieces):
        pieces, finish = pieces[:limit], "length"
    return Plan(
        ident, created, model, form, bool(body.get("stream")), len(tokens(prompt)), pieces, finish, body
    )


def garbled(what: Plan) -> Plan:
    """The answer of a model whose weights are nothing but zeros."""
    return evolve(what, pieces=["!"] * len(what.pieces))
