"""One running answer of the demo server: paced, back-pressured, and gone as soon as its client is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from math import ceil
from typing import Any, Protocol

from attrs import define, evolve, field
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import Request
from zope.interface import implementer

from llmproxy.demo.faults import Faults
from llmproxy.demo.shapes import Plan, engine_error, garbled

__all__ = ["Generation", "Owner", "abort"]


class Owner(Protocol):
    """What a generation needs of the server."""

    reactor: IReactorTime

    def ended(self, generation: Generation, aborted: bool) -> None:
        """It is over; ``aborted`` when its client left first."""

    def exit(self, status: int) -> None:
        """End the process at once."""


def abort(request: Request) -> None:
    """Reset the request's connection."""
    if request.channel is not None:
        transport: Any = request.channel.transport  # a TCP connection: more than ITransport
        transport.abortConnection()


def _close(request: Request) -> None:
    """Close the request's connection once all that was written has left, with no end of message."""
    if request.channel is not None:
        transport: Any = request.channel.transport
        transport.loseConnection()


@implementer(IPushProducer)
@define(eq=False)
class Generation:
    """Writes one planned answer.

    :ivar pause: seconds before each token.
    """

    _owner: Owner
    _request: Request
    _plan: Plan
    _faults: Faults
    _pause: float
    _events: Iterator[bytes] = field(init=False, factory=lambda: iter(()))
    _taken: int = field(init=False, default=0)
    _written: int = field(init=False, default=0)
    _call: IDelayedCall | None = field(init=False, default=None)
    _after_pause: Callable[[], None] | None = field(init=False, default=None)
    _left: float = field(init=False, default=0.0)
    _paused: bool = field(init=False, default=False)
    _frozen: bool = field(init=False, default=False)
    _over: bool = field(init=False, default=False)

    def start(self, *, hang: bool = False) -> None:
        """Send the head, as vLLM does before the first token, and begin; or never send a thing."""
        self._request.notifyFinish().addErrback(self._client_left)
        if hang:
            return
        if not self._plan.stream:
            self._later(self._pause * len(self._plan.pieces), self._whole)
            return
        self._request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        self._events = self._plan.form.events(self._plan)
        self._request.registerProducer(self, True)
        self._request.write(b"")
        self._later(0, self._step)

    def break_off(self) -> None:
        """The engine has died: vLLM's error event and a clean end, where the API has such an event; 500 when
        not streaming."""
        if self._over:
            return
        form = self._plan.form
        if self._plan.stream:
            last = form.died()
            if last is None:
                _close(self._request)
                return
            self._request.write(last)
        else:
            self._request.setResponseCode(500)
            self._json(json.dumps(form.error(engine_error())).encode())
        self._finish()

    def reset(self) -> None:
        """Reset its connection."""
        abort(self._request)

    def silence(self) -> None:
        """Say nothing more, and end only when the client leaves."""
        self._cancel()
        self._after_pause = None

    # Sleep.

    def cut(self) -> None:
        """End the answer where it is, as a sleep with ``mode=abort`` does."""
        if self._over:
            return
        if self._plan.stream:
            for data in self._plan.form.aborted(self._plan, self._written):
                self._request.write(data)
        else:
            self._cancel()
            missing = ceil(self._left / self._pause) if self._pause and self._after_pause else None
            cut = evolve(self._plan, pieces=self._plan.pieces[: -missing if missing else 0], finish="abort")
            self._json(json.dumps(cut.form.answer(cut)).encode())
        self._finish()

    def freeze(self) -> None:
        """Stand still until :meth:`thaw`; before :meth:`start`, nothing but the head will be sent."""
        self._frozen = True
        self._cancel()

    def thaw(self, *, garble: bool = False) -> None:
        """Go on, where the time stood still.

        :param garble: what is still to come is garbage.
        """
        self._frozen = False
        if garble:
            self._plan = garbled(self._plan)
            self._events = islice(self._plan.form.events(self._plan), self._taken, None)
        left, self._left = self._left, 0.0
        if self._after_pause is not None and self._call is None and not (self._over or self._paused):
            self._call = self._owner.reactor.callLater(left, self._run)

    # A step writes what comes before the next token, then waits for it.

    def _step(self) -> None:
        faults = self._faults
        for data in self._events:
            self._taken += 1
            if data:
                self._request.write(data)
                continue
            if faults.mid_stream is not None and self._written >= self._fault_point():
                self._fail()
                return
            self._later(self._pause, self._token)
            return
        self._finish()

    def _token(self) -> None:
        self._taken += 1
        self._written += 1
        self._request.write(next(self._events))
        self._later(0, self._step)

    def _fault_point(self) -> int:
        return len(self._plan.pieces) // 2 if self._faults.after is None else self._faults.after

    def _fail(self) -> None:
        match self._faults.mid_stream:
            case "error-event":
                self.break_off()
            case "die-mid-stream":
                abort(self._request)
            case "close-mid-body":
                _close(self._request)
            case "exit-mid-stream":
                self._owner.exit(1)
            case _:
                self.silence()

    def _whole(self) -> None:
        body = json.dumps(self._plan.form.answer(self._plan)).encode()
        if self._faults.mid_stream in ("error-event", "die-mid-stream", "exit-mid-stream", "stall"):
            self._fail()
        elif self._faults.mid_stream == "close-mid-body":
            self._json(body, body[: len(body) // 2])
            _close(self._request)
        else:
            self._json(body)
            self._finish()

    def _json(self, body: bytes, part: bytes | None = None) -> None:
        self._request.setHeader(b"content-type", b"application/json")
        self._request.setHeader(b"content-length", b"%d" % len(body))
        self._request.write(body if part is None else part)

    # Time, back-pressure, and the end.

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        self._after_pause, self._left = then, seconds
        if not (self._paused or self._frozen):
            self._call = self._owner.reactor.callLater(seconds, self._run)

    def _run(self) -> None:
        self._call = None
        then, self._after_pause = self._after_pause, None
        if then is not None and not self._over:
            then()

    def _cancel(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            self._left = max(0.0, call.getTime() - self._owner.reactor.seconds())
            call.cancel()

    def pauseProducing(self) -> None:
        self._paused = True
        self._cancel()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._after_pause is not None and self._call is None and not (self._over or self._frozen):
            self._call = self._owner.reactor.callLater(0, self._run)

    def stopProducing(self) -> None:
        """The connection is gone; ``notifyFinish`` tells."""
        self._cancel()

    def _finish(self) -> None:
        self._end(aborted=False)
        if self._plan.stream:
            self._request.unregisterProducer()
        self._request.finish()

    def _client_left(self, reason: Failure) -> None:
        self._end(aborted=True)

    def _end(self, aborted: bool) -> None:
        if not self._over:
            self._over = True
            self._cancel()
            self._owner.ended(self, aborted)
