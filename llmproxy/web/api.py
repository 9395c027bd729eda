"""``/api``: what the operator's command talks to."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from llmproxy.errors import Refusal, invalid_request, runtime_unavailable
from llmproxy.fleet.backend import Backend
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.lifecycle import State
from llmproxy.fleet.surroundings import Decision, Event
from llmproxy.runtimes.interface import RuntimeUnavailable
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import ProxyResource, require_admin

__all__ = ["ApiResource", "answer_json", "backend_view"]

DEFAULT_TAIL = 100
MOST_TAIL = 10_000


def answer_json(request: ProxyRequest, status: int, value: object) -> None:
    """Answer with a JSON document."""
    request.answer(status, json.dumps(value).encode() + b"\n", [(b"Content-Type", b"application/json")])


def backend_view(backend: Backend) -> dict[str, Any]:
    """One backend as ``/api/backends/<name>`` shows it."""
    start, failure, address = backend.last_start, backend.last_failure, backend.address
    instance = backend.instance
    return {
        "name": backend.name,
        "route": backend.name,
        "runtime": backend.spec.runtime,
        "engine": backend.spec.engine,
        "state": backend.state,
        "since": backend.since,
        "address": None if address is None else str(address),
        "via": None if address is None else address.via,
        "in_flight": backend.admission.in_flight,
        "waiting": backend.admission.waiting,
        "models": list(backend.models),
        "container": backend.spec.container,
        "run": None if instance is None else instance.run,
        "needs": {"gpu_memory": backend.spec.gpu_memory, "gpus": backend.spec.gpus},
        "last_start": None
        if start is None
        else {"seconds": start.seconds, "at": start.at, "phases": start.phases},
        "last_failure": None
        if failure is None
        else {
            "message": failure.message,
            "hint": failure.hint,
            "exit_code": failure.exit_code,
            "oom": failure.oom,
            "at": backend.last_failure_at,
            "log_tail": failure.log_tail,
        },
        "idle_in": backend.idle_in,
        "retry_in": backend.retry_in,
    }


def _not_found(what: str) -> Refusal:
    return Refusal(404, "route_not_found", what, kind="invalid_request_error")


class ApiResource(ProxyResource):
    """The admin API; every path needs an administrator's key."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet

    def serve(self, request: ProxyRequest) -> None:
        """See :class:`~llmproxy.web.resource.ProxyResource`."""
        require_admin(request)
        match [segment.decode("utf-8", "replace") for segment in request.postpath or ()]:
            case ["backends"] | ["backends", ""]:
                self._need(request, b"GET")
                views = [backend_view(backend) for backend in self._fleet.backends.values()]
                answer_json(request, 200, {"backends": views})
            case ["backends", name]:
                self._need(request, b"GET")
                answer_json(request, 200, backend_view(self._backend(name)))
            case ["backends", name, "logs"]:
                self._need(request, b"GET")
                _Logs(request, self._backend(name)).send()
            case ["backends", name, verb] if verb in ("start", "stop", "restart", "reset"):
                self._need(request, b"POST")
                self._act(request, self._backend(name), verb)
            case ["events"]:
                self._need(request, b"GET")
                _Events(request, self._fleet).send()
            case _:
                raise _not_found("There is no such path under /api.")

    @staticmethod
    def _need(request: ProxyRequest, method: bytes) -> None:
        if request.method != method and not (method == b"GET" and request.method == b"HEAD"):
            raise Refusal(
                405,
                "invalid_request",
                f"This path takes {method.decode()}.",
                kind="invalid_request_error",
            )

    def _backend(self, name: str) -> Backend:
        backend = self._fleet.route(name)
        if backend is None:
            known = ", ".join(sorted(self._fleet.backends)) or "none"
            raise _not_found(f"There is no backend {name!r}. Backends: {known}.")
        return backend

    def _act(self, request: ProxyRequest, backend: Backend, verb: str) -> None:
        force = _flag(request, b"force")
        done: Deferred[None]
        if verb == "start":
            refusal = backend.refusal
            if refusal is not None:
                raise refusal
            done = self._start(request, backend)
        elif verb == "stop":
            if backend.spec.runtime == "url":
                raise Refusal(
                    409,
                    "invalid_request",
                    "A backend with runtime url runs elsewhere; llmproxy does not stop it.",
                    kind="invalid_request_error",
                )
            backend.stop_wanted("stopped by the operator", force=force)
            done = self._when(request, backend, "absent", "failed")
        elif verb == "restart":
            backend.stop_wanted("restarted by the operator", force=force)
            backend.reset()
            done = self._start(request, backend)
        else:
            backend.reset()
            done = backend.when(backend.state)
        if not _flag(request, b"wait"):
            done.addErrback(lambda _: None)
            answer_json(request, 202, backend_view(backend))
        else:
            request.when_gone = done.cancel
            # It fails when it is cancelled: the client has left, or the backend is configured anew.
            done.addBoth(lambda _: answer_json(request, 200, backend_view(backend)))

    @staticmethod
    def _when(request: ProxyRequest, backend: Backend, *states: State) -> Deferred[None]:
        """Fire when it is in one of these states, and all that belongs to that step has been done.

        The state is told in the middle of a step of the lifecycle, when the cause of a failure, say, has not
        been noted yet, and what is wanted of the backend then has to wait for the end of that step.
        """
        settled = backend.when(*states)
        return settled.addCallback(lambda _: deferLater(request.site.clock, 0))

    def _start(self, request: ProxyRequest, backend: Backend) -> Deferred[None]:
        """Start it, after its end when it is about to end; fires when that has come to something."""
        backend.demand()
        if backend.wishes.unfit is not None:
            raise backend.wishes.unfit
        if backend.state in ("starting", "ready", "waking", "failed"):
            return self._when(request, backend, "ready", "failed", "absent")
        # It may have to end first, or to wait for room.
        begun = self._when(request, backend, "starting", "waking", "failed")
        return begun.addCallback(lambda _: self._when(request, backend, "ready", "failed", "absent"))


class _Logs:
    """The output of one backend, with secrets removed, and on request whatever comes."""

    def __init__(self, request: ProxyRequest, backend: Backend) -> None:
        self._request = request
        self._backend = backend
        self._follow = _flag(request, b"follow")
        self._tail = _number(request, b"tail", DEFAULT_TAIL, MOST_TAIL)

    def send(self) -> None:
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


class _Events:
    """Every transition as a server-sent event, those that are remembered first."""

    def __init__(self, request: ProxyRequest, fleet: Fleet) -> None:
        self._request = request
        self._fleet = fleet

    def send(self) -> None:
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
            fields |= {"from": state, "to": state, "decision": event.kind, "for": event.whom}
        else:
            fields |= {"from": event.old, "to": event.new}
        fields["reason"] = event.reason
        self._request.stream(b"data: " + json.dumps(fields).encode() + b"\n\n")


def _flag(request: ProxyRequest, name: bytes) -> bool:
    values: list[bytes] = request.args.get(name, [])
    return bool(values) and values[-1].lower() in (b"1", b"true", b"yes")


def _number(request: ProxyRequest, name: bytes, default: int, most: int) -> int:
    values: list[bytes] = request.args.get(name, [])
    if not values:
        return default
    if not values[-1].isdigit():
        raise invalid_request(f"{name.decode()} must be a whole number.", param=name.decode())
    return min(int(values[-1]), most)
