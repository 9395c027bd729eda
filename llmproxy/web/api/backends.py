"""``/api/backends/<name>/<verb>``: what the operator does to a backend."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from llmproxy.backend.backend import Backend
from llmproxy.errors import Refusal, shutting_down
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.api.answers import conflict, flag
from llmproxy.web.api.until import Waiting
from llmproxy.web.api.views import backend_view
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import answer_json

__all__ = ["VERBS", "act"]

VERBS = {
    "start": ("wait",),
    "stop": ("wait", "force"),
    "sleep": ("wait",),
    "wake": ("wait",),
    "restart": ("wait", "force"),
    "reset": ("wait",),
}
"""What can be done, and the parameters that each takes."""


def act(request: ProxyRequest, fleet: Fleet, waiting: Waiting, backend: Backend, verb: str) -> None:
    """Do it, and answer at once (202), or with ``wait=1`` when it is done (200).

    ``Prefer: respond-async`` (RFC 7240 section 4.1) counts more than ``wait=1``.

    :raises llmproxy.errors.Refusal: it cannot be done.
    """
    if fleet.closing:
        # Backends outlive the proxy; whoever comes then is told what becomes of them.
        raise shutting_down().about(backend.name, backend.state)
    _Act(request, fleet, waiting, backend).do(verb)
    # What is wanted no more shall not be told as waiting.
    fleet.scheduler.soon()
    waiting.look(backend.name)


class _Act:
    def __init__(self, request: ProxyRequest, fleet: Fleet, waiting: Waiting, backend: Backend) -> None:
        self._request = request
        self._fleet = fleet
        self._waiting = waiting
        self._backend = backend
        self._force = flag(request, b"force")
        self._cuts = backend.gate.cuts
        self._asynchronous = _prefers_async(request)
        self._wait = flag(request, b"wait") and not self._asynchronous

    def do(self, verb: str) -> None:
        steps = {
            "start": self._start,
            "stop": self._stop,
            "sleep": self._sleep,
            "wake": self._wake,
            "restart": self._restart,
            "reset": self._reset,
        }
        self._tells_cut = "force" in VERBS[verb]
        done = steps[verb]()
        if not self._wait:
            done.addErrback(lambda _: None)
            done.cancel()
            if self._asynchronous:
                self._request.setHeader(b"Preference-Applied", b"respond-async")
            self._answer(202)
        else:
            self._request.when_gone = done.cancel
            # It fails when it is cancelled: the client has left, or the backend is configured anew.
            done.addBoth(lambda _: self._done(started=verb in ("start", "restart", "wake")))

    def _answer(self, status: int) -> None:
        now = self._request.site.clock.seconds()
        view = backend_view(self._fleet, self._backend, now)
        if self._tells_cut:
            view["cut"] = self._backend.gate.cuts - self._cuts
        answer_json(self._request, status, view)

    def _done(self, *, started: bool) -> None:
        backend = self._backend
        refusal: Refusal | None = None
        if started and backend.state in ("absent", "sleeping"):
            refusal = backend.wishes.unfit
        elif started and backend.state == "failed":
            # What a request that had waited would have been told.
            refusal = backend.refusal
        if refusal is not None:
            self._request.refuse(refusal)
        else:
            self._answer(200)

    # -- the verbs ----------------------------------------------------------------------------------

    def _start(self) -> Deferred[None]:
        """Start it, after its end when it is about to end, and when there is room."""
        backend = self._backend
        if backend.refusal is not None:
            raise backend.refusal
        backend.demand()
        if backend.wishes.unfit is not None:
            raise backend.wishes.unfit
        return self._come_to_something()

    def _come_to_something(self) -> Deferred[None]:
        backend = self._backend

        def over() -> bool:
            # While it is wanted and has not begun, the wish is remembered there.
            return backend.wishes.run_since is None and backend.state in (
                "ready",
                "failed",
                "absent",
                "sleeping",
            )

        return self._until(over)

    def _until(self, over: Callable[[], bool]) -> Deferred[None]:
        # A backend that is configured no more ends all that waits for a state of it.
        closed = self._backend.when()
        return self._waiting.until(self._request.site.clock, self._backend.name, over, closed)

    def _stop(self) -> Deferred[None]:
        self._must_run_here("does not stop it")
        backend = self._backend
        backend.stop_wanted("stopped by the operator", force=self._force)
        stopped = backend.when("absent", "failed")
        # What belongs to that step has been done then.
        return stopped.addCallback(lambda _: deferLater(self._request.site.clock, 0))

    def _restart(self) -> Deferred[None]:
        self._must_run_here("does not restart it")
        self._backend.stop_wanted("restarted by the operator", force=self._force)
        self._backend.reset()
        return self._start()

    def _reset(self) -> Deferred[None]:
        self._backend.reset()
        return self._backend.when(self._backend.state)

    def _sleep(self) -> Deferred[None]:
        self._must_run_here("does not put it to sleep")
        backend, needs = self._backend, self._backend.needs
        if not needs.sleep:
            raise conflict(f"{backend.name} cannot sleep.", _why_no_sleep(backend)).about(
                backend.name, backend.state
            )
        leaves = backend.state == "draining" and backend.wishes.leaves_as not in ("1", "2")
        if backend.wishes.stop is not None or leaves:
            raise conflict(
                f"{backend.name} is about to stop.",
                f"Start it when it has stopped (llmproxy start {backend.name}), and put it to sleep then.",
            ).about(backend.name, backend.state)
        if backend.state not in ("ready", "draining", "falling_asleep", "sleeping"):
            raise conflict(
                f"{backend.name} is {backend.state}; only what is ready can fall asleep.",
                f"Start it first (llmproxy start {backend.name}), or wait until it is ready.",
            ).about(backend.name, backend.state)
        backend.sleep_wanted("put to sleep by the operator")

        def over() -> bool:
            awake = backend.state == "ready" and backend.wishes.sleep is None
            return awake or backend.state not in ("ready", "draining", "falling_asleep", "stopping")

        return self._until(over)

    def _wake(self) -> Deferred[None]:
        backend = self._backend
        if backend.refusal is not None:
            raise backend.refusal
        dozes = backend.state == "draining" and backend.wishes.leaves_as in ("1", "2")
        if not dozes and backend.state not in ("sleeping", "falling_asleep", "waking", "ready"):
            raise conflict(
                f"{backend.name} is {backend.state}, not asleep.",
                f"llmproxy start {backend.name} starts it, and waits until it is ready.",
            ).about(backend.name, backend.state)
        return self._start()

    def _must_run_here(self, but: str) -> None:
        if self._backend.spec.runtime == "url":
            raise conflict(f"A backend with runtime url runs elsewhere; llmproxy {but}.").about(
                self._backend.name, self._backend.state
            )


def _prefers_async(request: ProxyRequest) -> bool:
    words = b",".join(request.fields.all(b"prefer")).lower().split(b",")
    return any(word.partition(b";")[0].strip() == b"respond-async" for word in words)


def _why_no_sleep(backend: Backend) -> str:
    if backend.spec.engine != "vllm":
        return f"An engine that is {backend.spec.engine} has no sleep."
    if backend.spec.sleep == "off":
        return "Its setting sleep is off."
    about = [remark for remark in backend.needs.remarks if "sleep" in remark]
    return " ".join(about) or (
        "It needs --enable-sleep-mode on its command line and VLLM_SERVER_DEV_MODE=1 in its environment."
    )
