"""Whether anybody listens, without the reactor."""

from __future__ import annotations

import socket

from llmproxy.backend.knock import knock_at
from llmproxy.runtimes.interface import Address


def test_a_port_of_this_machine() -> None:
    """Nobody listens, however often it is tried, and then somebody does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        knock = knock_at(Address("127.0.0.1", server.getsockname()[1], "process"))
        assert knock is not None
        assert [knock.is_refused() for _ in range(3)] == [True, True, True]
        server.listen()
        assert not knock.is_refused()
        knock.close()


def test_a_knock_that_is_closed_knows_nothing() -> None:
    """It leaves the answer to who really connects."""
    knock = knock_at(Address("127.0.0.1", 1, "process"))
    assert knock is not None
    knock.close()
    assert not knock.is_refused()


def test_what_would_take_longer_is_left_to_the_reactor() -> None:
    """Names and addresses of other machines are not tried."""
    assert knock_at(Address("localhost", 1, "url")) is None
    assert knock_at(Address("192.0.2.1", 1, "url")) is None
    assert knock_at(Address("192.0.2.1", 1, "published")) is None
