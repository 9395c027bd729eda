"""Small servers that answer in a thread while a test asks them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import TypeVar

__all__ = ["serving"]

AnyServer = TypeVar("AnyServer", bound=BaseServer)


@contextmanager
def serving(server: AnyServer) -> Iterator[AnyServer]:
    """That server, until the test is done with it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
