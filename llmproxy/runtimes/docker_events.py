"""The engine's event stream, in a daemon thread of its own that never gives up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import requests
import urllib3
from attrs import define, field
from docker.errors import DockerException
from docker.types import CancellableStream
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_client import CALL_TIMEOUT, make_client, unavailable
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.docker_state import read_event

__all__ = ["BACK_OFF_FIRST", "BACK_OFF_MOST", "EventStream", "drop_stream", "end_stream"]

BACK_OFF_FIRST = 0.2
"""Seconds to the first try after a lost connection: `systemctl restart docker` takes about a second."""
BACK_OFF_MOST = 5.0
"""Seconds between tries at most: a person who has started Docker Desktop should not wait for us."""


def end_stream(stream: CancellableStream[Any]) -> None:
    """Break it off from another thread; the one that reads it sees its end."""
    try:
        stream.close()
    except (OSError, AttributeError, DockerException):
        # Closed already, or just closing: the SDK reaches through three private attributes to the socket.
        return


def drop_stream(stream: CancellableStream[Any]) -> None:
    """Close it in the thread that reads it.  The SDK has the socket and the response hold on to each other,
    so that they would wait for the garbage collector."""
    end_stream(stream)
    response = getattr(stream, "_response", None)
    if isinstance(response, requests.Response):
        response.close()


@define(eq=False)
class EventStream:
    """Calls back in the reactor's thread.

    :ivar connected: the stream stands; whatever happened before it must be looked up.
    :ivar event: something happened to a container.
    :ivar lost: the stream broke; it is tried again.
    :ivar types: kinds of objects that are listened to, and what reads one event of them.
    """

    _reactor: IReactorFromThreads
    _settings: DockerSettings
    connected: Callable[[], None]
    event: Callable[[Any], None]
    lost: Callable[[str], None]
    _types: tuple[str, ...] = field(default=("container",), kw_only=True)
    _read: Callable[[Mapping[str, Any]], Any] = field(default=read_event, kw_only=True)
    _closing: threading.Event = field(factory=threading.Event, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _stream: CancellableStream[Any] | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _log = Logger()

    def start(self) -> None:
        """Begin to listen."""
        self._thread = threading.Thread(target=self._work, name="llmproxy-docker-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._closing.set()
        self.reconnect()

    def reconnect(self) -> None:
        """Break the connection off and make a new one: it is thought dead."""
        with self._lock:
            if self._stream is not None:
                end_stream(self._stream)

    def _work(self) -> None:
        wait = BACK_OFF_FIRST
        while not self._closing.is_set():
            reason = "the event stream ended"
            try:
                if self._listen():
                    wait = BACK_OFF_FIRST
            except (
                DockerException,
                requests.RequestException,
                urllib3.exceptions.HTTPError,
                OSError,
            ) as error:
                reason = str(unavailable(docker_host(self._settings), error))
            except ValueError as error:
                reason = f"the event stream is garbled: {error}"
            self._tell(self.lost, reason)
            self._closing.wait(wait)
            wait = min(BACK_OFF_MOST, wait * 2)

    def _listen(self) -> bool:
        """Pass on events until the stream ends; whether it stood at all."""
        client = make_client(self._settings, CALL_TIMEOUT)
        try:
            stream = client.events(decode=True, filters={"type": list(self._types)})
            with self._lock:
                self._stream = stream
            try:
                if self._closing.is_set():
                    return False
                self._tell(self.connected)
                for raw in stream:
                    event = self._read(raw)
                    if event is not None:
                        self._tell(self.event, event)
            finally:
                with self._lock:
                    self._stream = None
                drop_stream(stream)
        finally:
            client.close()
        return True

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._closing.is_set():
            self._reactor.callFromThread(self._pass_on, callback, *args)

    def _pass_on(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._closing.is_set():
            callback(*args)
