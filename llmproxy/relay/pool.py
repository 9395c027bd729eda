"""Connections to one backend that are kept for the next request."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime, IStreamClientEndpoint

from llmproxy.relay.upstream import UPSTREAM, UpstreamConnection

__all__ = ["KEEP_IDLE", "ConnectionPool"]

KEEP_IDLE = 4.0
"""Seconds that an idle connection is kept.  uvicorn, and so vLLM, closes one after 5 s
(``VLLM_HTTP_TIMEOUT_KEEP_ALIVE``); to give it up sooner avoids most races with that."""


class ConnectionPool:
    """Connections to one address, the most recently used first.

    :param endpoint: makes new connections; bounds the time that connecting takes.
    """

    def __init__(self, clock: IReactorTime, endpoint: IStreamClientEndpoint) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._idle: list[tuple[UpstreamConnection, float]] = []
        self._sweep: IDelayedCall | None = None
        self._closed = False

    def kept(self) -> UpstreamConnection | None:
        """A kept connection, which carries nothing at present; None when there is none."""
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    def connect(self) -> Deferred[UpstreamConnection]:
        """A new connection.

        Fails with what the endpoint fails with (``ConnectionRefusedError``, ``TimeoutError`` ...).
        """
        return self._endpoint.connect(UPSTREAM).addCallback(self._connected)

    def _connected(self, connection: IProtocol) -> UpstreamConnection:
        assert isinstance(connection, UpstreamConnection)
        connection.on_idle = self._keep
        connection.on_closed = self._forget
        return connection

    def _keep(self, connection: UpstreamConnection) -> None:
        if self._closed:
            connection.abort()
            return
        self._idle.append((connection, self._clock.seconds()))
        if self._sweep is None:
            self._sweep = self._clock.callLater(KEEP_IDLE, self._sweep_idle)

    def _sweep_idle(self) -> None:
        # One timer for all: the list is in order of last use, so the oldest stand at its front.
        self._sweep = None
        oldest = self._clock.seconds() - KEEP_IDLE
        while self._idle and self._idle[0][1] <= oldest:
            self._idle.pop(0)[0].abort()
        if self._idle:
            due = self._idle[0][1] + KEEP_IDLE - self._clock.seconds()
            self._sweep = self._clock.callLater(max(0.0, due), self._sweep_idle)

    def _forget(self, connection: UpstreamConnection) -> None:
        self._idle = [kept for kept in self._idle if kept[0] is not connection]

    def close(self) -> None:
        """Give up the idle connections; those in use end by themselves."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
