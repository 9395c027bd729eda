"""A WebSocket that real clients take for one: it sends each message back (RFC 6455, with no extensions)."""

from __future__ import annotations

from twisted.web.http import Request

from llmproxy.demo.extras import Switched, switch

__all__ = ["Echo", "websocket"]

_CLOSE, _PING, _PONG = 0x8, 0x9, 0xA


class Echo(Switched):
    """Sends each frame back as a server does, unmasked: so each message comes back as it was cut."""

    def __init__(self) -> None:
        self._pending = b""

    def dataReceived(self, data: bytes) -> None:
        self._pending += data
        while self._frame():
            pass

    def _frame(self) -> bool:
        """Take the first frame, if it is whole."""
        data = self._pending
        if len(data) < 2:
            return False
        length, start = data[1] & 0x7F, 2
        if length >= 126:
            start += 2 if length == 126 else 8
            length = int.from_bytes(data[2:start], "big")
        end = start + 4 + length  # a client's frame is masked
        if len(data) < end:
            return False
        mask, masked = data[start : start + 4], data[start + 4 : end]
        key = (mask * (length // 4 + 1))[:length]
        plain = (int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")
        self._pending = data[end:]
        self._answer(data[0], plain)
        return True

    def _answer(self, first: int, payload: bytes) -> None:
        assert self.transport is not None
        kind = first & 0x0F
        if kind == _PONG:
            return
        if kind == _PING:
            first = 0x80 | _PONG
        self.transport.write(_head(first, len(payload)) + payload)
        if kind == _CLOSE:
            self.transport.loseConnection()


def _head(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 1 << 16:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")


def websocket(request: Request) -> bytes | int:
    """The path's handler."""
    return switch(request, Echo())
