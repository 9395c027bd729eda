"""A line between the proxy and its Docker engine that can be slow, fail, say nothing, or be cut."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from attrs import define, field

__all__ = ["EngineLine"]

_FAILURE = b'{"message":"chaos: the engine fails"}\n'
_FAILED = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_FAILURE), _FAILURE)
)


@define(eq=False)
class EngineLine:
    """Listens on a socket of its own and passes on, connection by connection.

    :ivar delay: seconds for which each piece is kept, both ways.
    :ivar failing: new calls are answered with 500.
    :ivar silent: new connections are taken, and nothing is said on them until it is over.
    :ivar refusing: new connections are closed at once.
    """

    path: Path
    engine: Path
    delay: float = 0.0
    failing: bool = False
    silent: bool = False
    refusing: bool = False
    _listener: socket.socket = field(init=False)
    _events: set[socket.socket] = field(init=False, factory=set)
    _all: set[socket.socket] = field(init=False, factory=set)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def host(self) -> str:
        """In ``DOCKER_HOST`` form."""
        return f"unix://{self.path}"

    def cut_events(self) -> None:
        """End the streams of events that there are."""
        with self._lock:
            found = list(self._events)
        for each in found:
            _end(each)

    def cut_all(self) -> None:
        """End all connections that there are."""
        with self._lock:
            found = list(self._all)
        for each in found:
            _end(each)

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        with suppress(OSError):
            os.unlink(self.path)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with self._lock:
            self._all.add(client)
        try:
            if self.refusing:
                return
            server.connect(str(self.engine))
            back = threading.Thread(target=self._pass, args=(server, client, None), daemon=True)
            back.start()
            self._pass(client, server, client)
            back.join()
        except OSError:
            pass
        finally:
            with self._lock:
                self._all.discard(client)
                self._events.discard(client)
            for each in (client, server):
                each.close()

    def _pass(self, source: socket.socket, sink: socket.socket, client: socket.socket | None) -> None:
        """Pass on what comes.  ``client``: what comes are calls, and this is their connection."""
        try:
            while data := source.recv(65536):
                if client is not None:
                    if b"/events?" in data or b"/events " in data:
                        with self._lock:
                            self._events.add(client)
                    while self.silent:
                        time.sleep(0.02)
                    if self.failing:
                        client.sendall(_FAILED)
                        break
                if self.delay:
                    time.sleep(self.delay)
                sink.sendall(data)
        except OSError:
            pass
        if client is not None and self.failing:
            _end(client)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if client is None:
            _end(sink)
            _end(source)


def _end(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
