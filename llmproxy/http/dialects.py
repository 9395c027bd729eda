"""What is said beside content in the words of the API that was asked: refusals, and in streams of events
heartbeats and the errors that come after the head.  Pure.

OpenAI's clients raise what stands in ``error`` of an event; of the responses API the fields of its ``error``
event stand beside it, where its documentation has them.  Anthropic's skip ``ping`` and raise ``error``, and
look for its type in that.  All skip comments (HTML standard, section 9.2.6).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from llmproxy.errors import Refusal
from llmproxy.http.openai import comment, error_fields

__all__ = ["Dialect", "answer_event", "dialect_of", "error_body", "error_event", "heartbeat"]

Dialect = Literal["openai", "responses", "anthropic"]

_ANTHROPIC = re.compile(rb"/v1/messages(?:/|$)")

# Anthropic's documentation of errors has one for each of these statuses.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}

_TRY_AGAIN = frozenset(("hold_timeout", "shutting_down", "does_not_fit"))
"""Codes of refusals that are nobody's fault: what Anthropic's clients know as ``overloaded_error``."""


def dialect_of(target: bytes) -> Dialect:
    """The API that a request target is of."""
    path = target.partition(b"?")[0].rstrip(b"/")
    if _ANTHROPIC.search(path):
        return "anthropic"
    return "responses" if path.endswith(b"/v1/responses") else "openai"


def error_body(dialect: Dialect, refusal: Refusal) -> bytes:
    """A refusal as the JSON body of an answer."""
    error = error_fields(refusal)
    if dialect == "anthropic":
        return json.dumps(_of_anthropic(refusal, error)).encode()
    return json.dumps({"error": error}).encode()


def _of_anthropic(refusal: Refusal, error: dict[str, Any]) -> dict[str, Any]:
    kind = "overloaded_error" if refusal.code in _TRY_AGAIN else _type_of(refusal.status)
    return {"type": "error", "error": {**error, "type": kind}}


def _type_of(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def heartbeat(dialect: Dialect, fields: Mapping[str, Any]) -> bytes:
    """A sign of life, with what is known of how long it will take."""
    told = comment(fields)
    # Anthropic's own streams have pings, and there are clients that count on them.
    return told.removesuffix(b"\n") + _event("ping", {"type": "ping"}) if dialect == "anthropic" else told


def error_event(dialect: Dialect, refusal: Refusal) -> bytes:
    """A refusal as the last event of a stream."""
    error = error_fields(refusal)
    if dialect == "anthropic":
        return _event("error", _of_anthropic(refusal, error))
    return _error(dialect, error)


def answer_event(dialect: Dialect, status: int, answer: bytes) -> bytes | None:
    """An answer that is no stream as the last event of one; None: it has nothing to tell."""
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if status < 400:
        return b"data: " + json.dumps(parsed).encode() + b"\n\n"
    if not isinstance(parsed, dict):
        return None
    error = parsed.get("error", parsed)
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict) or not isinstance(error.get("message", error.get("detail")), str | list):
        # An engine may answer with a number alone; whatever it is, it is told as it is.
        return _error(dialect, error) if dialect == "openai" and "error" in parsed else None
    error.setdefault("message", str(error.get("detail", "")))
    if dialect == "anthropic":
        kind = error.get("type")
        native = isinstance(kind, str) and kind.endswith("_error")
        error["type"] = kind if native else _type_of(status)
        return _event("error", {"type": "error", "error": error})
    return _error(dialect, error)


def _error(dialect: Dialect, error: Any) -> bytes:
    if dialect == "responses":
        code = error.get("code")
        flat = {
            "type": "error",
            "code": None if code is None else str(code),
            "message": error["message"],
            "param": error.get("param"),
            "sequence_number": 0,
        }
        return _event("error", {**flat, "error": error})
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps(data).encode())
