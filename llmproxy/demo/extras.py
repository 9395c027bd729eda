"""Parts of the demo server that vLLM does not have: a flood of bytes, digests of uploads, a raw tunnel."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

__all__ = ["Flood", "Switched", "digest", "switch", "tunnel"]

_BLOCK = bytes(range(256)) * 256  # 64 KiB
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


@implementer(IPushProducer)
@define(eq=False)
class Flood:
    """Writes so many bytes, as fast as they are taken: byte ``i`` is ``i % 256``."""

    _request: Request
    _left: int
    _paused: bool = field(init=False, default=False)
    _over: bool = field(init=False, default=False)

    def start(self) -> None:
        self._request.notifyFinish().addErrback(self._client_left)
        self._request.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        while self._left and not (self._paused or self._over):  # write() pauses us when its buffer is full
            size = min(self._left, len(_BLOCK))
            self._left -= size
            self._request.write(_BLOCK[:size])
        if not (self._left or self._over):
            self._over = True
            self._request.unregisterProducer()
            self._request.finish()

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._over = True

    def _client_left(self, reason: Failure) -> None:
        self._over = True


def digest(request: Request) -> dict[str, object]:
    """Length and SHA-256 of the request's body."""
    assert request.content is not None
    total, length = hashlib.sha256(), 0
    while block := request.content.read(1 << 20):
        total.update(block)
        length += len(block)
    return {"length": length, "sha256": total.hexdigest()}


class Switched(Protocol):
    """What speaks on a connection that was one of HTTP: its end is that of the request that switched it.

    :ivar request: that request.
    """

    request: Request

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.request.connectionLost(reason)


class _Echo(Switched):
    """Sends back what comes, byte for byte."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


def switch(request: Request, echo: Switched) -> bytes | int:
    """Take the connection over as a WebSocket handshake asks, and give it to another protocol."""
    key = request.getHeader(b"sec-websocket-key")
    upgrade = (request.getHeader(b"upgrade") or b"").lower()
    if upgrade != b"websocket" or not key or request.channel is None:
        request.setResponseCode(426)
        request.setHeader(b"upgrade", b"websocket")
        request.setHeader(b"content-type", b"text/plain")
        return b"This path wants a WebSocket handshake.\n"
    channel = request.channel
    transport: Any = channel.transport  # a TCP connection: more than ITransport
    accept = b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())
    head = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
    head.append(b"Sec-WebSocket-Accept: " + accept)
    chosen = request.getHeader(b"sec-websocket-protocol")
    if chosen:
        head.append(b"Sec-WebSocket-Protocol: " + chosen.split(b",")[0].strip())
    channel.setTimeout(None)
    transport.unregisterProducer()  # the HTTP channel is registered with its own transport
    transport.protocol = echo
    echo.request = request
    echo.makeConnection(transport)
    transport.write(b"\r\n".join(head) + b"\r\n\r\n")
    return NOT_DONE_YET


def tunnel(request: Request) -> bytes | int:
    """A WebSocket handshake, and raw bytes echoed from then on.

    Frames come back as they came, masked: enough for a proxy's test, not a WebSocket server.
    """
    return switch(request, _Echo())
