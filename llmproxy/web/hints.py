"""What a client may say of one request beside the request itself: ``X-LLMProxy-...``.  Pure.

All of it is optional, and none of it reaches a backend.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import evolve, frozen

from llmproxy.config import units
from llmproxy.config.model import Probes
from llmproxy.errors import Refusal, hold_timeout, invalid_request
from llmproxy.http.headers import HINTS, Fields

__all__ = ["ANY_READY", "NO_HINTS", "Hints", "read_hints"]

ANY_READY = ("any-ready",)
"""Any backend of the same kind that is ready."""

_SWITCH = {b"1": True, b"true": True, b"yes": True, b"0": False, b"false": False, b"no": False}

_ROUTES = re.compile(rb"[A-Za-z0-9._-]+(?:[ \t]*,[ \t]*[A-Za-z0-9._-]+)*")


@frozen
class Hints:
    """What a client has said.

    :ivar max_wait: seconds that it waits for a backend at most; None: as long as that takes.
    :ivar no_start: it wants an answer only of a backend that is ready.
    :ivar keep_alive: seconds for which it wants the backend kept after this request; None: as configured.
    :ivar fallback: routes that may answer instead; none: no other one may; None: those that are configured.
    :ivar probe: it only looks: it is a monitor.
    """

    max_wait: float | None = None
    no_start: bool = False
    keep_alive: float | None = None
    fallback: tuple[str, ...] | None = None
    probe: bool = False

    def longest(self, configured: float | None) -> float | None:
        """Seconds that the request is held at most; None: as long as it takes."""
        if self.max_wait is None or configured is None:
            return configured if self.max_wait is None else self.max_wait
        return min(self.max_wait, configured)

    def too_long(self, configured: float | None, retry_after: float) -> Refusal:
        """Why a request is held no longer: 504, or 503 where it is its client that waits no longer.

        :param retry_after: seconds until the backend is ready, as far as that is known.
        """
        limit = self.longest(configured) or 0.0
        refusal = hold_timeout(limit, retry_after)
        if self.max_wait is None or limit != self.max_wait:
            return refusal
        return evolve(
            refusal,
            status=503,
            message=f"The backend is not ready within the {limit:g} s of X-LLMProxy-Max-Wait.",
            hint="Try again after Retry-After: the start goes on.",
        )


NO_HINTS = Hints()


def read_hints(fields: Fields, probes: Probes) -> Hints:
    """Read the header fields that are meant for the proxy.

    :raises llmproxy.errors.Refusal: ``invalid_request``: one of them cannot be understood.
    """
    agent = fields.get(b"user-agent", b"").decode("latin-1").lower() if probes.user_agents else ""
    probe = any(word.lower() in agent for word in probes.user_agents)
    if HINTS.isdisjoint(fields):
        return Hints(probe=True) if probe else NO_HINTS
    return Hints(
        max_wait=_read(fields, b"x-llmproxy-max-wait", _duration, units.DURATION_ALLOWED),
        no_start=bool(_read(fields, b"x-llmproxy-no-start", _SWITCH.get, "1 or 0")),
        keep_alive=_read(fields, b"x-llmproxy-keep-alive", _duration, units.DURATION_ALLOWED),
        fallback=_read(
            fields, b"x-llmproxy-fallback", _fallback, "any-ready, none, or routes with commas between them"
        ),
        probe=probe,
    )


def _read(fields: Fields, name: bytes, read: Callable[[bytes], Any], allowed: str) -> Any:
    values = fields.all(name) if name in fields else []
    if not values:
        return None
    found = read(values[0].strip().lower()) if len(values) == 1 else None
    if found is None:
        title = name.decode().title().replace("Llmproxy", "LLMProxy")
        told = ", ".join(value.decode("latin-1") for value in values)[:60]
        raise invalid_request(f"{title} is {told!r}, which is not allowed; use {allowed}.", param=title)
    return found


def _duration(value: bytes) -> float | None:
    try:
        return units.duration(value.decode("latin-1"))
    except ValueError:
        return None


def _fallback(value: bytes) -> tuple[str, ...] | None:
    if value == b"none":
        return ()
    if not _ROUTES.fullmatch(value):
        return None
    return tuple(dict.fromkeys(word.strip() for word in value.decode("ascii").split(",")))
