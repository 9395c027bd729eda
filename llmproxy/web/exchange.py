"""One request on its way: held until its backend is ready, handed over, its answer relayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.errors import (
    Refusal,
    backend_died,
    backend_unavailable,
    queue_full,
    route_not_found,
)
from llmproxy.http.headers import is_event_stream, is_json, upgrade
from llmproxy.http.metering import DocumentMeter, EventMeter
from llmproxy.relay.endpoints import lacking
from llmproxy.relay.upstream import Broken, ResponseHead, UpstreamConnection
from llmproxy.web.auth import may_use
from llmproxy.web.body import Full
from llmproxy.web.heads import own_lines, request_head
from llmproxy.web.heartbeat import answer_as_event, beat, refusal_as_event
from llmproxy.web.hints import NO_HINTS, Hints
from llmproxy.web.staying import Staying
from llmproxy.web.unread import no_room

if TYPE_CHECKING:
    from llmproxy.backend.backend import Backend
    from llmproxy.backend.gate import Lease
    from llmproxy.fleet.fleet import Fleet
    from llmproxy.web.request import ProxyRequest

__all__ = ["Exchange"]

LONGEST_ERROR = 64 * 1024
"""Bytes of an error answer that are kept to tell it as an event, when the head of a stream has left."""

MOVES = 4
"""How often one request goes on to another task, which is more than may be lost at once, and few enough that
a request of which engines die does not take all of them along."""

_UNBUFFERED = b"X-Accel-Buffering: no\r\n"
"""Tells nginx in front of us to pass each event on at once."""


def _settled() -> None:
    """Whoever leaves now leaves an exchange that is over."""


@implementer(IPushProducer)
class Exchange:
    """Carries one request to a backend and its answer back.

    :param target: path and query for the backend, raw.
    :param replaced: what the backend gets for a body instead of the request's own.
    :param hints: what the client says of the request.
    """

    def __init__(
        self,
        request: ProxyRequest,
        fleet: Fleet,
        backend: Backend,
        target: bytes,
        replaced: bytes | None = None,
        hints: Hints = NO_HINTS,
    ) -> None:
        self.backend = backend
        self._hints = hints
        self._fleet = fleet
        self._request = request
        self._target = target
        self._length = request.length
        if replaced is not None:
            self._length = len(replaced)
            self._keep(replaced)
        # A handshake has no body, and HTTP/1.0 knows of no switch (RFC 9110 section 7.8).
        switches = request.upgrades and request.modern and not self._length
        self._upgrade = upgrade(request.fields) if switches else None
        self._down = request.downstream(request)
        self._clock = request.site.clock
        self._lease: Lease | None = None
        self._connecting: Deferred[UpstreamConnection] | None = None
        self._up: UpstreamConnection | None = None
        self._held = False
        self._hold_seconds = 0.0
        # For how long it was with tasks that were lost before they answered, and since when with this one.
        self._in_vain = self._handed_at = 0.0
        self._timers: dict[str, IDelayedCall | Staying] = {}
        self._retried = False
        self._moves = 0
        self._head: ResponseHead | None = None
        self._meter: DocumentMeter | EventMeter | None = None
        self._error_answer: list[bytes] | None = None
        self._producing = False
        self._paused = False
        self._done = False
        request.when_gone = self.client_left
        if request.entry is not None:
            request.entry.route = backend.name
            request.entry.state = backend.state

    def _keep(self, replaced: bytes) -> None:
        # In place of the client's own, which takes room that is counted.
        try:
            self._request.body.replace(replaced)
        except Full as bound:
            raise no_room(str(bound)) from None
        except OSError:
            self._request.site.log_failure("keeping the body of a request", Failure())
            raise no_room() from None

    # -- holding ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Ask for the backend."""
        site = self._request.site
        if site.held >= site.limits.max_held and self.backend.state != "ready":
            full = queue_full(site.limits.max_held, self.backend.retry_after(5))
            self.refused(full.about(self.backend.name, self.backend.state))
        elif self.backend.enter(self):
            self._hold()

    def visit(self) -> bool:
        """Reach the backend if it is ready, without waking it or keeping it awake."""
        return self.backend.visit(self)

    def _hold(self) -> None:
        # The backend may have been ready again by the time that it said "held".
        if self._lease is not None or self._done:
            return
        self._held = True
        site = self._request.site
        site.held += 1
        if site.tracer is not None:
            site.tracer.held(self._request, self.backend.name)
        spec, hints = self.backend.spec, self._hints
        # Before this one, another process or a backend of an earlier configuration may have held it.
        waited = self._waited()
        limit = hints.longest(spec.max_wait)
        if limit is not None:
            left = max(0.0, limit - waited)
            self._timers["max_wait"] = self._clock.callLater(left, self._waited_too_long)
        if hints.no_start or not self._request.key.may_start:
            self._timers["no_start"] = Staying(self._fleet, self, self.backend)
        if self._wants_stream():
            first = max(0.0, spec.heartbeat_after - waited)
            self._timers["heartbeat"] = self._clock.callLater(first, self._heartbeat)

    def _waited(self) -> float:
        waited: float = self._clock.seconds() - self._request.arrived - self._in_vain
        return waited

    def _wants_stream(self) -> bool:
        request = self._request
        if not self._length or request.method != b"POST":
            return False
        return request.asks_for_stream()

    def _waited_too_long(self) -> None:
        del self._timers["max_wait"]
        refusal = self._hints.too_long(self.backend.spec.max_wait, self.backend.retry_after(5))
        self.backend.leave(self)
        self.refused(refusal.about(self.backend.name, self.backend.state))

    def _heartbeat(self) -> None:
        if not self._down.started:
            self._down.event_stream(self._own_lines() + _UNBUFFERED)
        elapsed = self._clock.seconds() - self._request.arrived
        self._down.data([beat(self._target, self.backend, self._request.key, elapsed)])
        self._timers["heartbeat"] = self._clock.callLater(self.backend.spec.heartbeat_every, self._heartbeat)

    def _hold_over(self) -> None:
        if not self._held:
            return
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()
        self._held = False
        self._request.site.held -= 1
        self._hold_seconds = self._waited()
        if self._request.entry is not None:
            self._request.entry.held = self._hold_seconds

    # -- Waiter: what the backend asks and says -----------------------------------------------------

    @property
    def priority(self) -> int:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        return self._request.key.priority

    @property
    def may_evict(self) -> bool:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        return self._request.key.may_evict

    def affinity(self) -> bytes | None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        return self._request.affinity()

    def admitted(self, lease: Lease) -> None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        self._hold_over()
        self._lease = lease
        if lease.movable:
            self._handed_at = self._clock.seconds()
        if self._request.entry is not None:
            self._request.entry.handed = True
        self._connect(fresh=False)

    def refused(self, refusal: Refusal) -> None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        self._hold_over()
        self._fail(refusal, "refused")

    def cut(self, reason: str) -> None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        if self._done:
            return
        self._let_go_upstream()
        lost = self._lease is not None and self._lease.replica.lost
        if not (lost and self._moves_on(suspicious=False)):
            self._broke(reason, suspicious=False)

    def handed_on(self, route: str | None) -> None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        self._hold_over()
        backend = None if route is None else self._fleet.heir(route)
        if backend is None:
            known = [name for name in self._fleet.backends if may_use(self._request.key, name)]
            self._fail(route_not_found(self.backend.name, known), "refused")
        else:
            self.backend = backend
            self.begin()

    # -- handing over -------------------------------------------------------------------------------

    def _connect(self, *, fresh: bool) -> None:
        assert self._lease is not None
        kept = None if fresh else self._lease.pool.kept()
        if kept is not None:
            try:
                self._send(kept)
            except Exception:
                # As the Deferred of a new connection does with a fault of our own.
                self._failed(Failure())
            return
        connecting = self._lease.pool.connect()
        self._connecting = connecting
        connecting.addCallbacks(self._connected, self._unconnected).addErrback(self._failed)

    def _connected(self, connection: UpstreamConnection) -> None:
        if self._connecting is None:
            # Given up in the meantime.
            connection.abort()
            return
        self._connecting = None
        self._send(connection)

    def _send(self, connection: UpstreamConnection) -> None:
        assert self._lease is not None
        self._up = connection
        request, address = self._request, self._lease.address
        head = request_head(
            request, self.backend, address, self._target, length=self._length, upgrade=self._upgrade
        )
        connection.send(head, request.body.source(), self, head_request=request.method == b"HEAD")

    def _unconnected(self, failure: Failure) -> None:
        if self._connecting is not None:
            self._connecting = None
            # What is missing here is no reason to doubt it.
            ours = lacking(failure)
            if not self._moves_on(suspicious=ours is None):
                self._broke(ours or "it does not accept connections", suspicious=ours is None)

    def _moves_on(self, *, suspicious: bool) -> bool:
        """Have another task of the backend answer, or the next one that there is, as long as nothing of an
        answer has come: what has not begun to answer can be asked again."""
        lease = self._lease
        if lease is None or not lease.movable or self._head is not None or self._moves >= MOVES:
            return False
        self._moves += 1
        self._in_vain += self._clock.seconds() - self._handed_at
        if self._request.entry is not None:
            self._request.entry.handed = False
        self._retried = False
        self._lease = None
        lease.release(suspicious=suspicious)
        heir = self._fleet.heir(self.backend.name)
        if heir is not None and heir is not self.backend:
            # It is configured anew, or another process has it now.
            self.backend = heir
            self.begin()
        elif self.backend.enter(self, again=True):
            self._hold()
        return True

    def _failed(self, failure: Failure) -> None:
        # A fault of our own must neither keep the client waiting nor its place in flight.
        self._request.site.log_failure("handing a request over", failure)
        self._let_go_upstream()
        self._fail(Refusal(500, "error", "llmproxy failed on this request; its log says why."), "error")

    # -- ResponseHandler: what the backend answers --------------------------------------------------

    def _own_lines(self) -> bytes:
        held = self._waited() if self._held else self._hold_seconds
        return own_lines(self._request, self.backend, self._head, held)

    def response_head(self, head: ResponseHead) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        request = self._request
        if head.upgraded and self._upgrade is None:
            # The client would send its next request, its key in it, into a tunnel that it knows nothing of.
            self._let_go_upstream()
            self._broke("it switched protocols unasked", suspicious=False)
            return
        self._head = head
        events = is_event_stream(head.fields)
        if events:
            self._meter = EventMeter()
        elif head.status == 200 and request.method == b"POST" and is_json(head.fields):
            self._meter = DocumentMeter()
        entry = request.entry
        if entry is not None:
            entry.first_byte = self._clock.seconds() - request.arrived
            entry.meter = self._meter
        if self._down.started:
            # The head of a stream has left with the first heartbeat.
            if head.status != 200 or not events:
                self._error_answer = []
            return
        own = self._own_lines()
        if events:
            own += _UNBUFFERED
        if self._request.site.closing:
            self._request.channel.persistent = False
        self._down.head(head, own)
        if head.upgraded:
            self._tunnel()
        elif head.length is None and self._up is not None and self._up.bare:
            # vLLM's head comes before the first token, which may be long in coming.
            self._down.flush()

    def _tunnel(self) -> None:
        assert self._up is not None
        self._down.flush()
        channel: Any = self._request.channel
        down = self._down
        channel.become_tunnel(self._up.write_tunnel, lambda: down.sent)
        upstream = self._up.transport
        if upstream is not None:
            # A backend that reads slowly slows the client down.
            upstream.registerProducer(channel.transport, True)

    def response_data(self, pieces: list[bytes]) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        if self._error_answer is not None:
            if sum(map(len, self._error_answer)) < LONGEST_ERROR:
                self._error_answer.extend(pieces)
            return
        if self._meter is not None:
            self._meter.feed(pieces)
        if not self._producing and self._up is not None and not self._up.complete:
            self._producing = True
            self._request.registerProducer(self, True)
        self._down.data(pieces)

    def response_end(self) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        # The connection may serve another request now, which must not find it paused.
        if self._paused:
            self._pace(pause=False)
        self._up = None
        if self._done:
            return
        head = self._head
        assert head is not None, "an end comes after a head"
        if head.upgraded:
            self._finish("ok")
            self._down.close()
            return
        if self._error_answer is not None:
            answer = b"".join(self._error_answer)
            self._down.data([answer_as_event(self._target, head.status, answer, self.backend)])
        died = self._meter is not None and self._meter.found
        outcome = "backend_died" if died else "ok" if self._error_answer is None else "error"
        self._finish(outcome, suspicious=died or head.status >= 500)
        self._down.end()

    def response_broken(self, broken: Broken) -> None:
        """See :class:`~llmproxy.relay.upstream.ResponseHandler`."""
        up, self._up = self._up, None
        if self._done:
            return
        if broken.untouched and up is not None and up.used and not self._retried:
            # It was an idle connection that the backend closed as we used it; RFC 9112 section 9.3.1.
            self._retried = True
            self._connect(fresh=True)
            return
        if not self._moves_on(suspicious=True):
            self._broke(broken.reason, suspicious=True)

    def _broke(self, reason: str, *, suspicious: bool) -> None:
        """The backend is gone before its answer was complete."""
        name = self.backend.name
        if self._head is None or self._error_answer is not None:
            refusal = backend_unavailable(f"The backend {name!r} did not answer: {reason}.")
            self._fail(refusal.about(name, self.backend.state), "backend_died", suspicious=suspicious)
            return
        if isinstance(self._meter, EventMeter) and not self._meter.settled:
            refusal = backend_died(f"The backend {name!r} broke its answer off: {reason}.")
            # It may have ended within a line: an empty line ends whatever that was.
            told = refusal_as_event(self._target, refusal.about(name, self.backend.state))
            self._down.data([b"\n\n" + told])
        self._finish("backend_died", suspicious=suspicious)
        self._down.break_off()

    # -- the client's side --------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The client is slow: read no more from the backend."""
        self._pace(pause=True)

    def resumeProducing(self) -> None:
        """The client has caught up."""
        self._pace(pause=False)

    def stopProducing(self) -> None:
        """The client is gone; :meth:`client_left` comes as well."""

    def _pace(self, *, pause: bool) -> None:
        if self._up is not None and self._up.transport is not None and pause is not self._paused:
            self._paused = pause
            transport = self._up.transport
            transport.pauseProducing() if pause else transport.resumeProducing()

    def client_left(self) -> None:
        """The client's connection is gone: give up its place, or close the upstream request at once."""
        if self._done:
            return
        if self._held:
            self.backend.leave(self)
        tunnel = self._head is not None and self._head.upgraded
        self._let_go_upstream()
        self._finish("ok" if tunnel else "client_gone")

    def _let_go_upstream(self) -> None:
        connecting, self._connecting = self._connecting, None
        up, self._up = self._up, None
        if up is not None:
            up.abort()
        if connecting is not None:
            connecting.cancel()

    # -- the end ------------------------------------------------------------------------------------

    def _fail(self, refusal: Refusal, outcome: str, *, suspicious: bool = False) -> None:
        """End with an error, as a status if the head has not left, else as an event."""
        if self._done:
            return
        started = self._down.started
        if started:
            self._down.data([refusal_as_event(self._target, refusal)])
            if self._request.entry is not None:
                self._request.entry.error = refusal.code
        self._finish(outcome, suspicious=suspicious)
        if started:
            self._down.end()
        else:
            told = evolve(refusal, backend=self.backend.name)
            self._request.refuse(told, outcome=outcome, held=self._hold_seconds)

    def _finish(self, outcome: str, *, suspicious: bool = False) -> None:
        """Give back everything that is held, and settle what the access log says."""
        self._done = True
        # Request and exchange refer to each other, which would leave both to the collector of cycles.
        self._request.when_gone = _settled
        self._hold_over()
        if self._producing:
            self._producing = False
            if self._request.channel is not None:
                self._request.unregisterProducer()
        entry = self._request.entry
        if entry is not None:
            entry.outcome = outcome
            entry.sent = self._down.sent
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release(suspicious=suspicious)
            if self._hints.keep_alive is not None and lease.counted:
                self.backend.keep(self._hints.keep_alive)
