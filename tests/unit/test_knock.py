"""Whether anybody listens, without the reactor."""

from __future__ import annotations

import socket

from llmproxy.fleet.knock import is_refused
from llmproxy.runtimes.interface import Address


def test_a_port_of_this_machine() -> None:
    """Nobody listens, then somebody does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", server.getsockname()[1], "process")
        assert is_refused(address)
        server.listen()
        assert not is_refused(address)


def test_what_would_take_longer_is_left_to_the_reactor() -> None:
    """Names and addresses of other machines are not tried."""
    assert not is_refused(Address("localhost", 1, "url"))
    assert not is_refused(Address("192.0.2.1", 1, "url"))
