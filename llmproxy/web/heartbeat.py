"""What a client is told whose stream has begun before its backend: that it waits, for what, and how long."""

from __future__ import annotations

from math import ceil
from typing import Any

from llmproxy.backend.makeup import Makeup
from llmproxy.config.model import Key
from llmproxy.errors import Refusal, backend_unavailable
from llmproxy.http.dialects import answer_event, dialect_of, error_event, heartbeat

__all__ = ["answer_as_event", "beat", "refusal_as_event"]


def beat(target: bytes, backend: Makeup, key: Key, elapsed: float) -> bytes:
    """One heartbeat.

    :param target: path and query of the request; they tell in whose words.
    :param key: whose request it is; one that may not use all routes is not told of others by name.
    :param elapsed: seconds that the request has waited.
    """
    known = backend.forecast()
    fields: dict[str, Any] = {
        "state": backend.state,
        "phase": known.phase,
        "elapsed": round(elapsed),
        "eta": None if known.eta is None else ceil(known.eta),
    }
    if known.progress is not None:
        fields["progress"] = round(known.progress, 2)
    if known.reason is not None and key.routes is None:
        fields["reason"] = backend.redacted(known.reason)
    return heartbeat(dialect_of(target), fields)


def refusal_as_event(target: bytes, refusal: Refusal) -> bytes:
    """An error after the head of a stream has left."""
    return error_event(dialect_of(target), refusal)


def answer_as_event(target: bytes, status: int, answer: bytes, backend: Makeup) -> bytes:
    """A backend's answer that is no stream, after the head of one has left."""
    event = answer_event(dialect_of(target), status, answer)
    if event is None:
        refusal = backend_unavailable(f"The backend answered with status {status}.")
        event = error_event(dialect_of(target), refusal.about(backend.name, backend.state))
    return event
