"""What is followed as it comes: a backend's output, and the fleet's events."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from llmproxy.backend.backend import Backend
from llmproxy.backend.surroundings import Decision, Event
from llmproxy.errors import runtime_unavailable
from llmproxy.fleet.fleet import Fleet
from llmproxy.runtimes.interface import RuntimeUnavailable
from llmproxy.web.api.answers import flag, not_found, number, text
from llmproxy.web.request import ProxyRequest

__all__ = ["BEAT", "Events", "Logs"]

DEFAULT_TAIL = 100
MOST_TAIL = 10_000

BEAT = 15.0
"""Seconds between comments on a stream of events, so that nothing in between takes it for dead (WHATWG, HTML,
section 9.2.7)."""


class Logs:
    """The output of one backend, with secrets removed, and on request whatever comes."""

    def __init__(self, request: ProxyRequest, backend: Backend) -> None:
        self._request = request
        self._backend = backend
        self._follow = flag(request, b"follow")
        self._tail = number(request, b"tail", DEFAULT_TAIL, MOST_TAIL)

    def send(self) -> None:
        """Answer."""
        request = self._request
        if not self._follow or request.method == b"HEAD":
            self._backend.logs(self._tail).addCallbacks(self._whole, self._failed)
            return
        request.stream_text(b"text/plain; charset=utf-8", backend=self._backend.name)
        following = self._backend.runtime.follow_logs(self._backend.spec, self._tail, self._line)
        request.when_gone = following.cancel
        following.addErrback(lambda _: None)
        following.addCallback(lambda _: request.end_stream())

    def _line(self, line: str) -> None:
        self._request.stream(self._backend.redacted(line).encode("utf-8", "replace") + b"\n")

    def _whole(self, text: str) -> None:
        kind = [(b"Content-Type", b"text/plain; charset=utf-8")]
        self._request.answer(200, text.encode("utf-8", "replace"), kind, backend=self._backend.name)

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, RuntimeUnavailable):
            self._request.refuse(runtime_unavailable(str(failure.value)).about(self._backend.name))
        else:
            self._request.processingFailed(failure)


class Events:
    """Transitions and decisions as server-sent events: those that are remembered, then those that come.

    ``tail=N`` sends at most the last N of the remembered ones, ``backend=NAME`` only what is about that
    backend or lease or was decided for it, and ``follow=0`` ends where the others go on.

    :raises llmproxy.errors.Refusal: it is asked for what is not there.
    """

    def __init__(self, request: ProxyRequest, fleet: Fleet) -> None:
        self._request = request
        self._fleet = fleet
        self._follow = flag(request, b"follow", default=True) and request.method != b"HEAD"
        tail = number(request, b"tail", MOST_TAIL, MOST_TAIL)
        self._about = self._asked()
        kept = [event for event in fleet.events if self._wanted(event)]
        self._kept = kept[-tail:] if tail else []

    def send(self) -> None:
        """Answer."""
        self._request.stream_text(b"text/event-stream; charset=utf-8")
        # A comment first, so that a client knows at once that it is connected.
        self._request.stream(b": llmproxy events\n\n")
        for event in self._kept:
            self._tell(event)
        # A stream may be followed for days; what is sent need not be kept for it.
        self._kept = []
        if self._follow:
            self._go_on()
        else:
            self._request.end_stream()

    def _go_on(self) -> None:
        unfollow = self._fleet.follow(self._tell_wanted)
        beats = LoopingCall(self._request.stream, b": still here\n\n")
        beats.clock = self._request.site.clock
        beating = beats.start(BEAT, now=False)
        beating.addErrback(lambda failure: self._request.site.log_failure("a comment on a stream", failure))

        def gone() -> None:
            unfollow()
            if beats.running:
                beats.stop()

        self._request.when_gone = gone

    def _asked(self) -> str | None:
        asked, fleet = text(self._request, b"backend"), self._fleet
        if asked is None:
            return None
        backend = fleet.route(asked)
        # What is configured no more, and leases that have ended, are known by what is remembered of them.
        if backend is None and asked not in {event.backend for event in fleet.events}:
            known = ", ".join(sorted(fleet.backends)) or "none"
            raise not_found(f"There is no backend {asked!r}. Backends: {known}.")
        return asked if backend is None else backend.name

    def _wanted(self, event: Event) -> bool:
        whom = event.whom if isinstance(event, Decision) else None
        return self._about is None or self._about in (event.backend, whom)

    def _tell_wanted(self, event: Event) -> None:
        if self._wanted(event):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        fields: dict[str, Any] = {"at": event.at, "backend": event.backend}
        if isinstance(event, Decision):
            backend = self._fleet.backends.get(event.backend)
            state = None if backend is None else backend.state
            if event.kind == "phase":
                # It may be of a start that is over.
                state = "starting"
            fields |= {"from": state, "to": state, "decision": event.kind, "for": event.whom}
        else:
            fields |= {"from": event.old, "to": event.new}
        fields["reason"] = event.reason
        self._request.stream(b"data: " + json.dumps(fields).encode() + b"\n\n")
