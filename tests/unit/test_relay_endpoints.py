"""Why a connection to a backend could not be made: for want of something here, or not."""

from __future__ import annotations

import errno
import os

import pytest
from twisted.internet.defer import fail
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectBindError, ConnectError, ConnectionRefusedError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from llmproxy.relay.endpoints import endpoint_for, lacking


def no_address() -> ConnectError:
    """What a connection fails with for which there is no local address."""
    return ConnectError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def test_no_port_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """To an IPv4 address that is what it means."""
    monkeypatch.setattr(TCP4ClientEndpoint, "connect", lambda *_: fail(no_address()))
    told: list[Failure] = []
    endpoint_for(None, "127.0.0.1", 1).connect(Factory()).addErrback(told.append)
    assert told[0].check(ConnectError)
    assert lacking(told[0]) == "this machine has no port left for a connection to it"


def test_no_address_of_that_kind() -> None:
    """A name may lead to ::1 as well, and without IPv6 that fails alike: it says nothing of ports."""
    assert lacking(Failure(no_address())) is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_what_lacks_here(number: int) -> None:
    """Whoever says so, Twisted or the system."""
    words = os.strerror(number)
    for error in (ConnectBindError(number, words), ConnectError(number, words), OSError(number, words)):
        told = lacking(Failure(error))
        assert told is not None
        assert "left for a connection to it" in told


def test_what_fails_at_the_other_side() -> None:
    """Nothing lacks here."""
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    for error in (refused, ConnectError(), OSError(), OSError(errno.EPERM, "no"), ValueError(errno.EMFILE)):
        assert lacking(Failure(error)) is None
