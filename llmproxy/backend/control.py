"""Requests to an engine that no client has made: to sleep, to wake, to say whether it sleeps."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure

from llmproxy.engines.sleep import Call
from llmproxy.http.headers import authority
from llmproxy.relay.endpoints import lacking
from llmproxy.relay.upstream import UPSTREAM, Broken, ResponseHead, UpstreamConnection
from llmproxy.runtimes.interface import Address

__all__ = ["Answer", "NoAnswer", "ask"]

LARGEST = 64 * 1024
"""Bytes of an answer that are kept; those of these paths have some dozen."""

AGAIN = 0.5
"""Seconds until it is tried again to connect where there was no descriptor for it."""

Answer = tuple[int, bytes]
"""Status and body."""


class NoAnswer(Exception):
    """The engine did not answer.  ``str()`` says how."""


def ask(
    clock: IReactorTime,
    endpoint: IStreamClientEndpoint,
    address: Address,
    call: Call,
    *,
    authorization: bytes | None,
    limit: float,
) -> Deferred[Answer]:
    """Ask once, on a connection of its own.

    :param limit: seconds that it may take.
    :raises NoAnswer: it did not answer in time, or not at all.
    """
    return _Question(clock, endpoint, address, call, authorization, limit).answered


class _Question:
    """Hears the answer as the handler of its connection."""

    def __init__(
        self,
        clock: IReactorTime,
        endpoint: IStreamClientEndpoint,
        address: Address,
        call: Call,
        authorization: bytes | None,
        limit: float,
    ) -> None:
        self.answered: Deferred[Answer] = Deferred(self._taken_back)
        self._body = b"" if call.body is None else json.dumps(call.body).encode()
        self._head = _head(address, call, len(self._body), authorization)
        self._status = 0
        self._received = b""
        self._over = False
        self._connection: UpstreamConnection | None = None
        self._limit: IDelayedCall = clock.callLater(limit, self._failed, f"no answer within {limit:g} s")
        self._clock = clock
        self._endpoint = endpoint
        self._again: IDelayedCall | None = None
        self._connect()

    def _connect(self) -> None:
        self._again = None
        self._connecting = self._endpoint.connect(UPSTREAM)
        self._connecting.addCallbacks(self._connected, self._not_connected)

    def _connected(self, connection: object) -> None:
        assert isinstance(connection, UpstreamConnection)
        self._connection = connection
        connection.send(self._head, self._body, self)

    def _not_connected(self, failure: Failure) -> None:
        if lacking(failure):
            # It says nothing about the engine, and a loaded model is worth some patience.
            self._again = self._clock.callLater(AGAIN, self._connect)
            return
        self._failed(f"it does not accept connections ({type(failure.value).__name__})")

    def response_head(self, head: ResponseHead) -> None:
        self._status = head.status

    def response_data(self, pieces: list[bytes]) -> None:
        if len(self._received) < LARGEST:
            self._received += b"".join(pieces)

    def response_end(self) -> None:
        if not self._over:
            self._over = True
            self._close()
            self.answered.callback((self._status, self._received))

    def response_broken(self, broken: Broken) -> None:
        self._failed(broken.reason)

    def _failed(self, why: str) -> None:
        # To give up what still connects, or a connection, is told here as well.
        if not self._over:
            self._over = True
            self._close()
            self.answered.errback(NoAnswer(why))

    def _taken_back(self, _: object) -> None:
        self._over = True
        self._close()

    def _close(self) -> None:
        if self._limit.active():
            self._limit.cancel()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        elif self._connection is not None:
            self._connection.abort()
        else:
            self._connecting.cancel()


def _head(address: Address, call: Call, length: int, authorization: bytes | None) -> bytes:
    lines = [
        b"%s %s%s HTTP/1.1"
        % (call.method.encode(), address.prefix.encode("ascii"), call.path.encode("ascii")),
        b"Host: %s" % authority(address.host, address.port, 443 if address.tls else 80),
        b"User-Agent: llmproxy",
        b"Connection: close",
    ]
    if authorization is not None:
        lines.append(b"Authorization: %s" % authorization)
    if length or call.method == "POST":
        lines.append(b"Content-Length: %d" % length)
    if length:
        lines.append(b"Content-Type: application/json")
    return b"\r\n".join(lines) + b"\r\n\r\n"
