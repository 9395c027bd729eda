"""What is followed as it comes: a backend's output, and the fleet's events."""

from __future__ import annotations

import json
from typing import Any

from twisted.python.failure import Failure

from llmproxy.backend.backend import Backend
from llmproxy.backend.surroundings import Decision, Event
from llmproxy.errors import runtime_unavailable
from llmproxy.fleet.fleet import Fleet
from llmproxy.runtimes.interface import RuntimeUnavailable
from llmproxy.web.api.answers import flag, number
from llmproxy.web.request import ProxyRequest

__all__ = ["Events", "Logs"]

DEFAULT_TAIL = 100
MOST_TAIL = 10_000


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
        if not self._follow:
            self._backend.logs(self._tail).addCallbacks(self._whole, self._failed)
            return
        request.stream_text(b"text/plain; charset=utf-8")
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
    """Every transition and decision as a server-sent event, those that are remembered first."""

    def __init__(self, request: ProxyRequest, fleet: Fleet) -> None:
        self._request = request
        self._fleet = fleet

    def send(self) -> None:
        """Answer."""
        self._request.stream_text(b"text/event-stream; charset=utf-8")
        # A comment first, so that a client knows at once that it is connected.
        self._request.stream(b": llmproxy events\n\n")
        for event in list(self._fleet.events):
            self._tell(event)
        self._request.when_gone = self._fleet.follow(self._tell)

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
