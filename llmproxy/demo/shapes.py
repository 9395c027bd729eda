"""What the demo server says: deterministic text in the JSON shapes of vLLM 0.32.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from attrs import evolve, frozen

__all__ = [
    "DONE",
    "ENGINE_DEAD",
    "BadRequest",
    "Plan",
    "aborted",
    "answer",
    "engine_error",
    "error",
    "event",
    "events",
    "garbled",
    "models",
    "plan",
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


@frozen
class Plan:
    """One answer, worked out before its first byte is sent.

    :ivar ident: ``chatcmpl-...`` or ``cmpl-...``.
    :ivar created: POSIX seconds.
    :ivar chat: a chat completion, as opposed to a text completion.
    :ivar prompt_tokens: words of the prompt.
    :ivar pieces: the tokens, each with the white space in front of it.
    :ivar finish: vLLM's ``finish_reason``.
    :ivar usage_chunk: the client asked for ``stream_options.include_usage``.
    """

    ident: str
    created: int
    model: str
    chat: bool
    stream: bool
    prompt_tokens: int
    pieces: Sequence[str]
    finish: str
    usage_chunk: bool = False

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


def event(value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


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


def _content(message: object) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def _chat_texts(body: Mapping[str, Any], model: str) -> tuple[str, str]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest(400, "Bad Request", "1 validation error:\n  'messages' is required", "messages")
    asked = [_content(m) for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    said = asked[-1] if asked else _content(messages[-1])
    reply = (
        f"You said: {said.strip()}\n\n"
        f"I am {model}, a demo model of llmproxy: I repeat your words, one token at a time, as vLLM would. "
        "With a real model behind this route, its answer streams here."
    )
    return " ".join(_content(m) for m in messages), reply


def _completion_texts(body: Mapping[str, Any]) -> tuple[str, str]:
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        prompt = " ".join(str(part) for part in prompt)
    if not isinstance(prompt, str):
        raise BadRequest(400, "Bad Request", "1 validation error:\n  'prompt' is required", "prompt")
    return prompt, f" {prompt.strip()}" if prompt.strip() else " (nothing was asked)"


def _limit(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadRequest(
                400, "BadRequestError", f"{name} must be at least 1, got {value!r}.", "max_tokens"
            )
        return value
    return None


def plan(body: Mapping[str, Any], names: Sequence[str], *, chat: bool, ident: str, created: int) -> Plan:
    """Work out the answer to a chat or text completion.

    The reply echoes the prompt.  ``max_tokens`` cuts it; with ``ignore_eos`` (vLLM's own field) as well, the
    reply is repeated until there are exactly ``max_tokens`` tokens, or 16 (vLLM's default) without it.

    :raises BadRequest: with vLLM's status and error object.
    """
    model = body.get("model")
    if model is None:  # vLLM accepts a request that names no model
        model = names[0]
    if model not in names:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(names)}."
        raise BadRequest(404, "NotFoundError", message, "model")
    stream = bool(body.get("stream"))
    options = body.get("stream_options")
    if options is not None and not stream:
        raise BadRequest(
            400, "BadRequestError", "Stream options can only be defined when `stream=True`.", "stream_options"
        )
    prompt, reply = _chat_texts(body, model) if chat else _completion_texts(body)
    limit, pieces, finish = _limit(body), tokens(reply), "stop"
    if body.get("ignore_eos"):
        pieces, finish = list(islice(cycle(pieces), limit or 16)), "length"
    elif limit is not None and limit < len(pieces):
        pieces, finish = pieces[:limit], "length"
    usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    return Plan(ident, created, model, chat, stream, len(tokens(prompt)), pieces, finish, usage)


def answer(what: Plan) -> dict[str, Any]:
    """The whole answer of a request that does not stream."""
    text = "".join(what.pieces)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": what.finish, "stop_reason": None}
    if what.chat:
        choice["message"] = {"role": "assistant", "content": text, "tool_calls": []}
    else:
        choice["text"] = text
    return {
        "id": what.ident,
        "object": "chat.completion" if what.chat else "text_completion",
        "created": what.created,
        "model": what.model,
        "choices": [choice],
        "usage": what.usage,
        "system_fingerprint": FINGERPRINT,
    }


def garbled(what: Plan) -> Plan:
    """The answer of a model whose weights are nothing but zeros."""
    return evolve(what, pieces=["!"] * len(what.pieces))


def _base(what: Plan) -> dict[str, Any]:
    return {
        "id": what.ident,
        "object": "chat.completion.chunk" if what.chat else "text_completion",
        "created": what.created,
        "model": what.model,
    }


def _chunk(what: Plan, content: Mapping[str, Any], finish: str | None) -> bytes:
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
    return event({**_base(what), "choices": [choice]})


def _last(what: Plan) -> Iterator[bytes]:
    if what.usage_chunk:
        yield event({**_base(what), "choices": [], "usage": what.usage, "system_fingerprint": FINGERPRINT})
    yield DONE


def aborted(what: Plan, written: int) -> Iterator[bytes]:
    """How a stream ends that a sleep with ``mode=abort`` ends after so many tokens."""
    cut = evolve(what, pieces=what.pieces[:written])
    yield _chunk(cut, {"delta": {}} if what.chat else {"text": ""}, "abort")
    yield from _last(cut)


def events(what: Plan) -> Iterator[bytes]:
    """The event stream: for chat a chunk with the role first; one chunk for each token; the usage if it was
    asked for; ``[DONE]``.  Empty bytes come before each token, where the pause for it belongs."""
    if what.chat:
        yield _chunk(what, {"delta": {"role": "assistant", "content": ""}}, None)
    last = len(what.pieces) - 1
    for number, piece in enumerate(what.pieces):
        yield b""
        content = {"delta": {"content": piece}} if what.chat else {"text": piece}
        yield _chunk(what, content, what.finish if number == last else None)
    yield from _last(what)
