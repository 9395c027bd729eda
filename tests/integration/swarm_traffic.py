"""Clients that ask a proxy all the time, and what each of them was told."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from uuid import uuid4

from attrs import define, field, frozen

from tests.integration.proxy import Proxy, Wire, chat

__all__ = ["Outcome", "Stream", "Traffic", "some_words"]


def some_words() -> str:
    """Others each time: requests that begin alike go to the same task while it has no more than its share."""
    return f"{uuid4()} hello"


@frozen
class Outcome:
    """What became of one request.

    :ivar kind: ``complete``, ``error`` (an answer that says so, or a stream that ends with an error event),
        ``lost`` (the connection ended before a first byte) or ``cut`` (after it, without a word).
    :ivar seconds: from the request to its end.
    """

    kind: str
    stream: bool
    status: int
    seconds: float
    detail: str = ""


@define
class Traffic:
    """Asks all the time, in ``clients`` threads; every other one asks for streams.

    :ivar tokens: of each answer, one each ``delay`` seconds.
    """

    proxies: Sequence[Proxy]
    route: str
    clients: int = 6
    tokens: int = 4
    delay: float = 0.02
    outcomes: list[Outcome] = field(factory=list)
    _threads: list[threading.Thread] = field(factory=list, init=False)
    _over: threading.Event = field(factory=threading.Event, init=False)

    def __enter__(self) -> Traffic:
        for number in range(self.clients):
            thread = threading.Thread(target=self._ask, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def of(self, kind: str) -> list[Outcome]:
        """Those with that end."""
        return [each for each in self.outcomes if each.kind == kind]

    def _ask(self, number: int) -> None:
        count = number
        while not self._over.is_set():
            self.outcomes.append(self._one(self.proxies[count % len(self.proxies)], number % 2 == 1))
            count += 1

    def _one(self, proxy: Proxy, stream: bool) -> Outcome:
        began = time.monotonic()
        body = chat(
            f"{self.route}-model",
            some_words(),
            stream=stream,
            ignore_eos=True,
            max_tokens=self.tokens,
            demo_token_delay=self.delay,
        )
        status, data, kind, detail = 0, b"", "lost", ""
        try:
            connection, response = proxy.open("POST", "/v1/chat/completions", body)
        except (OSError, http.client.HTTPException) as error:
            detail = repr(error)
        else:
            status, kind = response.status, "cut"
            try:
                while chunk := response.read1():
                    data += chunk
                kind = _judge(status, data, stream)
            except (OSError, http.client.HTTPException) as error:
                detail = repr(error)
                # An event stream that breaks off says so, and then has no clean end.
                if stream and b'data: {"error"' in data:
                    kind = "error"
            finally:
                connection.close()
        if kind != "complete":
            detail += f" {data[-300:]!r}"
        return Outcome(kind, stream, status, time.monotonic() - began, detail)


def _judge(status: int, data: bytes, stream: bool) -> str:
    if status != 200:
        return "error"
    if stream:
        if data.endswith(b"data: [DONE]\n\n"):
            return "complete"
        return "error" if b'"error"' in data else "cut"
    try:
        return "complete" if json.loads(data)["choices"] else "cut"
    except ValueError:
        return "cut"


@define(eq=False)
class Stream:
    """One long stream that is read all the time."""

    wire: Wire
    data: bytearray = field(factory=bytearray, init=False)
    _last: float = field(factory=time.monotonic, init=False)
    _ended: bool = field(default=False, init=False)
    _thread: threading.Thread = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, stack: ExitStack, proxy: Proxy, route: str, count: int, delay: float = 0.1) -> list[Stream]:
        """So many at once, of which the first tokens have come; they are closed with the stack."""
        words = [some_words() for _ in range(count)]
        wires = [stack.enter_context(proxy.streaming(route, delay=delay, words=each)) for each in words]
        streams = [cls(wire) for wire in wires]
        for stream in streams:
            stack.callback(stream.close)
        return streams

    def _read(self) -> None:
        with suppress(OSError):
            while data := self.wire.some():
                self.data += data
                self._last = time.monotonic()
        self._ended = True

    @property
    def lives(self) -> bool:
        """Tokens have come in the last three seconds, and there was no error."""
        return not self._ended and time.monotonic() - self._last < 3 and b'"error"' not in self.data

    @property
    def broke(self) -> bool:
        """It has ended as one has to whose server has died: with an error event, and no clean end."""
        told = bytes(self.data).replace(b'": "', b'":"')
        return self._ended and b'"code":"backend_died"' in told and not told.endswith(b"0\r\n\r\n")

    @property
    def completed(self) -> bool:
        """It has ended with all its tokens."""
        return self.data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and b'"error"' not in self.data

    def close(self) -> None:
        """Read no more."""
        with suppress(OSError):
            self.wire.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
