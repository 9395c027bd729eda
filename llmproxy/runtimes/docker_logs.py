"""A container's output: the end of it, and as it comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import requests
import urllib3
from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError, DockerException, NotFound
from docker.types import CancellableStream
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_client import find_container, make_client, unavailable
from llmproxy.runtimes.docker_events import drop_stream, end_stream
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.lines import Lines

__all__ = ["Follower", "read_tail"]


def read_tail(client: APIClient, container: str, tail: int) -> str:
    """The last lines; empty when there is no such container.

    The logging driver may keep nothing that can be read (``none``, ``syslog``); the engine says so with a
    server error, and its words stand for the log then.
    """
    if tail <= 0:
        return ""
    found = find_container(client, container)
    if found is None:
        return ""
    try:
        data: bytes = client.logs(found["Id"], stdout=True, stderr=True, tail=tail)
    except NotFound:
        return ""
    except APIError as error:
        return f"(no log: {error.explanation})"
    lines: list[str] = []
    Lines(lines.append).feed(data, last=True)
    return "\n".join(lines[-tail:])


@define(eq=False)
class Follower:
    """Reads one container's output in a daemon thread of its own until the run ends.

    :ivar ended: fires when the run has ended, fails with ``RuntimeUnavailable``; cancel it to stop.
    """

    _reactor: IReactorFromThreads
    _settings: DockerSettings
    _container: str
    _tail: int
    _line: Callable[[str], None]
    ended: Deferred[None] = field(init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _stream: CancellableStream[bytes] | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.ended = Deferred(lambda _: self.close())

    def start(self) -> Deferred[None]:
        """Begin."""
        threading.Thread(target=self._work, name="llmproxy-docker-logs", daemon=True).start()
        return self.ended

    def close(self) -> None:
        """No more lines from now on."""
        self._closed = True
        with self._lock:
            if self._stream is not None:
                end_stream(self._stream)

    def _work(self) -> None:
        error: Exception | None = None
        try:
            self._read()
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as problem:
            # A container that is removed while we read has ended.
            if not isinstance(problem, APIError):
                error = unavailable(docker_host(self._settings), problem)
        self._reactor.callFromThread(self._finish, error)

    def _read(self) -> None:
        client = make_client(self._settings)
        try:
            found = find_container(client, self._container)
            if found is None:
                return
            stream: CancellableStream[bytes] = client.logs(
                found["Id"], stdout=True, stderr=True, stream=True, follow=True, tail=max(0, self._tail)
            )
            with self._lock:
                self._stream = stream
                if self._closed:
                    return
            lines = Lines(lambda text: self._reactor.callFromThread(self._pass_on, text))
            for data in stream:
                lines.feed(data)
            lines.feed(b"", last=True)
        finally:
            with self._lock:
                stream_to_drop, self._stream = self._stream, None
            if stream_to_drop is not None:
                drop_stream(stream_to_drop)
            client.close()

    def _pass_on(self, text: str) -> None:
        if not self._closed:
            self._line(text)

    def _finish(self, result: Any) -> None:
        if not self.ended.called:
            if result is None:
                self.ended.callback(None)
            else:
                self.ended.errback(result)
