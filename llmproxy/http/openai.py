"""The OpenAI API's shapes: the model field, error bodies, the list of models, server-sent events.  Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from llmproxy.errors import Refusal, invalid_request

__all__ = [
    "COMPLETION_PATHS",
    "Glance",
    "comment",
    "error_fields",
    "error_headers",
    "glance_at",
    "is_inference_path",
    "model_object",
    "parse_body",
    "requested_model",
    "wants_stream",
]

COMPLETION_PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v1/score",
        "/tokenize",
        "/detokenize",
        "/pooling",
        "/classify",
    )
)
"""Paths without a route that are routed by the body's ``model`` (section 2 of the contract)."""

_PREFIXES = ("/v1/audio/", "/v1/images/")


def is_inference_path(path: str) -> bool:
    """Whether ``path`` is routed by the body's ``model`` field."""
    if path in COMPLETION_PATHS:
        return True
    # A server that resolves ``..`` would see another path than the one that was let through here.
    return path.startswith(_PREFIXES) and ".." not in unquote(path).split("/")


def parse_body(body: bytes) -> dict[str, Any]:
    """The request as a JSON object.

    :raises llmproxy.errors.Refusal: ``invalid_request`` when it is not one.
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as cause:
        detail = str(cause) if isinstance(cause, json.JSONDecodeError) else "it is not valid JSON text"
        raise invalid_request(f"The request body is not valid JSON: {detail}.") from None
    if not isinstance(parsed, dict):
        raise invalid_request("The request body must be a JSON object.")
    return parsed


class Glance(msgspec.Struct):
    """The fields of a request by which it is routed and held, whatever their types.

    :ivar model: :data:`msgspec.UNSET` when there is none.
    """

    model: Any = msgspec.UNSET
    stream: Any = False


_glance = msgspec.json.Decoder(Glance)


def glance_at(body: bytes) -> Glance:
    """Look at a request without making objects of all that is in it: prompts are long.

    Keys may be escaped; those within other objects do not count, and of several the last does, as for
    Python's own parser, which vLLM uses.

    :raises llmproxy.errors.Refusal: ``invalid_request`` when it is no JSON object.
    """
    try:
        if not body.isascii():
            # msgspec does not look at the bytes of strings that it passes over; servers do.
            body.decode()
        return _glance.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Python's parser takes more (NaN, lone surrogates, UTF-16) and says better what is wrong.
        parsed = parse_body(body)
        return Glance(parsed.get("model", msgspec.UNSET), parsed.get("stream", False))


def requested_model(asked: Glance) -> str | None:
    """The ``model`` of a request; None when it has none.

    :raises llmproxy.errors.Refusal: ``invalid_request``: it is neither a string nor null.
    """
    model = asked.model
    if isinstance(model, str) and model:
        return model
    if model is msgspec.UNSET or model is None:
        return None
    raise invalid_request("'model' must be a string that is not empty.", param="model")


def wants_stream(body: bytes) -> bool:
    """Whether a request asks for its answer as a stream of events."""
    try:
        return glance_at(body).stream is True
    except Refusal:
        # What it is instead is for the backend to say.
        return False


def error_headers(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """Header fields that go with a refusal: ``Retry-After`` (RFC 9110, 10.2.3), ``WWW-Authenticate``."""
    fields = [(b"Content-Type", b"application/json")]
    if refusal.retry_after is not None:
        fields.append((b"Retry-After", b"%d" % max(1, math.ceil(refusal.retry_after))))
    if refusal.status == 401:
        fields.append((b"WWW-Authenticate", b'Bearer realm="llmproxy"'))
    return fields


def error_fields(refusal: Refusal) -> dict[str, Any]:
    """What is told of a refusal, as section 10 of the contract has it."""
    retry = refusal.retry_after
    return {
        "message": refusal.message,
        "type": refusal.kind,
        "param": refusal.param,
        "code": refusal.code,
        "backend": refusal.backend,
        "state": refusal.state,
        "hint": refusal.hint,
        "retry_after": None if retry is None else max(1, math.ceil(retry)),
    }


def comment(fields: Mapping[str, Any]) -> bytes:
    """A heartbeat: a comment line, which event-stream parsers skip (HTML standard, section 9.2.6)."""
    return b": llmproxy " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def model_object(
    model: str, *, route: str, state: str, created: int, context_length: int | None = None
) -> dict[str, Any]:
    """One entry of ``/v1/models``."""
    told: dict[str, Any] = {"route": route, "state": state}
    if context_length is not None:
        told["context_length"] = context_length
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "llmproxy",
        "meta": {"llmproxy": told},
    }
