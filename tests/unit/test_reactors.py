"""The proxy's own reactor: what is readable is read, and what fails ends alone."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

if not hasattr(select, "epoll"):
    pytest.skip("this system has no epoll", allow_module_level=True)

from llmproxy.reactors.epoll import LeanEPollReactor


@implementer(IReadDescriptor)
class Readable:
    """One end of a pair of sockets, with something to read on it."""

    def __init__(self, reactor: LeanEPollReactor) -> None:
        self.near, self.far = socket.socketpair()
        self.reads: list[bytes] = []
        self.lost: list[Failure] = []
        self.answer: object = None
        self.then = lambda: None
        self._reactor: Any = reactor
        self._reactor.addReader(self)
        self.far.send(b"hello")

    def fileno(self) -> int:
        return self.near.fileno()

    def logPrefix(self) -> str:
        return "test"

    def doRead(self) -> Any:
        self.reads.append(self.near.recv(100))
        self.then()
        if isinstance(self.answer, Exception) and not isinstance(self.answer, ConnectionDone):
            raise self.answer
        return self.answer

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)

    def close(self) -> None:
        self._reactor.removeReader(self)
        self.near.close()
        self.far.close()


@pytest.fixture
def reactor() -> Iterator[LeanEPollReactor]:
    """One that is not installed, its descriptors closed at the end."""
    made: Any = LeanEPollReactor()
    yield made
    for reader in made.removeAll():
        reader.connectionLost(Failure(ConnectionDone()))
    made._poller.close()
    waker = made.waker
    if waker is not None:
        waker.connectionLost(None)


@pytest.fixture
def readable(reactor: LeanEPollReactor) -> Iterator[Readable]:
    """One of its descriptors."""
    made = Readable(reactor)
    yield made
    made.close()


def test_what_is_readable_is_read(reactor: LeanEPollReactor, readable: Readable) -> None:
    """Once for what has come, and not again before more comes."""
    reactor.doPoll(0)
    reactor.doPoll(0)
    assert (readable.reads, readable.lost) == ([b"hello"], [])


def test_a_connection_that_ends_is_told(reactor: LeanEPollReactor, readable: Readable) -> None:
    """It hears of its own reason, and is read no more."""
    readable.answer = ConnectionDone()
    reactor.doPoll(0)
    readable.far.send(b"more")
    reactor.doPoll(0)
    assert readable.reads == [b"hello"]
    assert [type(reason.value) for reason in readable.lost] == [ConnectionDone]


def test_a_hang_up_is_twisteds(reactor: LeanEPollReactor, readable: Readable) -> None:
    """What is more than readable goes the way that Twisted has for it."""
    readable.far.close()
    reactor.doPoll(0)
    assert readable.reads == [b"hello"]


def test_a_fault_ends_one_connection(reactor: LeanEPollReactor, readable: Readable) -> None:
    """It is logged, its connection is told, and the others are read as ever."""
    other = Readable(reactor)
    readable.answer = ValueError("a fault")
    with capturedLogs() as events:
        reactor.doPoll(0)
    other.close()
    assert [event["log_failure"].value for event in events if "log_failure" in event] == [readable.answer]
    assert len(readable.lost) == 1
    assert (other.reads, other.lost) == ([b"hello"], [])


def test_who_has_gone_is_not_read(reactor: LeanEPollReactor) -> None:
    """An event for somebody whom an earlier event of the same turn has removed is dropped."""
    pair = [Readable(reactor), Readable(reactor)]
    made: Any = reactor
    for one, other in zip(pair, reversed(pair), strict=True):
        one.then = lambda other=other: made.removeReader(other)  # type: ignore[misc]
    reactor.doPoll(0)
    assert sum(len(one.reads) for one in pair) == 1
    for one in pair:
        one.close()
