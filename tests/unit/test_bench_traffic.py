"""What the benchmark sends, and its own backend's answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import Mock

from bench import traffic
from bench.backend import Backend


class _Timers:
    """Stands in for the event loop: what is due is called by the test."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return 100.0

    def call_at(self, when: float, call: Callable[..., None], *arguments: Any) -> Mock:
        self.due.append((when, lambda: call(*arguments)))
        return Mock(spec=asyncio.TimerHandle)

    def call_later(self, delay: float, call: Callable[..., None], *arguments: Any) -> Mock:
        return self.call_at(self.time() + delay, call, *arguments)


def _connected() -> tuple[Backend, Any, _Timers]:
    timers, transport = _Timers(), Mock(spec=asyncio.Transport)
    backend = Backend(cast(asyncio.AbstractEventLoop, timers))
    backend.connection_made(transport)
    return backend, transport, timers


def _answered(*pieces: bytes) -> list[bytes]:
    """Give a backend these bytes; what it has written when all that was due has been called."""
    backend, transport, timers = _connected()
    for piece in pieces:
        backend.data_received(piece)
    while timers.due:
        timers.due.pop(0)[1]()
    return [call.args[0] for call in transport.write.call_args_list]


def test_request_is_whole() -> None:
    """A request's announced length is that of its JSON body, which names the model."""
    request = traffic.request(8000, model="other", stream=True)
    head, _, body = request.partition(b"\r\n\r\n")
    assert traffic.length_of(head, len(head)) == len(body)
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n")
    assert json.loads(body)["model"] == "other"
    assert json.loads(body)["stream"] is True


def test_backend_answers_each_request_once_however_it_is_cut() -> None:
    """A request is answered when its last byte has come; two at once are answered in order."""
    request = traffic.request(8000)
    assert _answered(request) == [traffic.SMALL_ANSWER]
    assert _answered(*(request[at : at + 1] for at in range(len(request)))) == [traffic.SMALL_ANSWER]
    assert _answered(request[:-1]) == []
    assert _answered(request + request) == [traffic.SMALL_ANSWER] * 2


def test_backend_streams_each_token_in_a_write_of_its_own() -> None:
    """A stream is a head, so many events in chunks of their own, each with its time, and the end."""
    written = _answered(traffic.request(8000, "/v1/chat/completions?n=3&rate=1000"))
    assert written[0] == traffic.STREAM_HEAD
    assert [len(traffic.stamps.findall(piece)) for piece in written[1:]] == [1, 1, 1, 0]
    assert written[-1] == b"0\r\n\r\n"


def test_backend_tells_when_it_had_the_request() -> None:
    """An answer that was waited for carries the times of the request's arrival and of its own writing."""
    written = _answered(traffic.request(8000, "/v1/chat/completions?wait=0.001"))
    head = written[0].partition(b"\r\n\r\n")[0]
    times = next(line for line in head.split(b"\r\n") if line.startswith(b"x-bench-times: "))
    arrived, answered = (float(value) for value in times.split(b" ")[1:])
    assert answered >= arrived


def test_backend_stops_while_its_client_does_not_read() -> None:
    """A large answer goes on only while the transport takes it."""

    backend, transport, _ = _connected()
    backend.pause_writing()
    backend.data_received(traffic.request(8000, "/x?size=1000"))
    assert transport.write.call_count == 1
    backend.resume_writing()
    assert len(transport.write.call_args.args[0]) == 1000
