"""The proxy's own reactor: what is readable is read, and what fails ends alone."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

if not hasattr(select, "epoll"):
    pytest.skip("this system has no epoll", allow_module_level=True)

from llmproxy.reactors import epoll
from llmproxy.reactors.epoll import CROWD, LeanEPollReactor
from llmproxy.reactors.writing import push, unsent, write_now, write_soon


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


def test_a_fault_in_the_end_of_one_is_nothing_to_the_others(
    reactor: LeanEPollReactor, sockets: list[Socket]
) -> None:
    """It is logged; the others are read, and what they wrote leaves."""
    near = sockets[0]
    readers = [Readable(reactor) for _ in range(CROWD)]

    def fault(reason: Failure) -> None:
        raise ValueError("a fault")

    for one in readers[:2]:
        one.answer = ConnectionDone()
        one.connectionLost = fault  # type: ignore[method-assign]
    readers[-1].then = lambda: write_soon(near, b"word")
    with capturedLogs() as events:
        reactor.doPoll(0)
    for one in readers:
        one.close()
    assert [str(event["log_failure"].value) for event in events if "log_failure" in event] == ["a fault"] * 2
    assert [len(one.reads) for one in readers] == [1] * CROWD
    assert (near.arrived(), reactor.outbox) == (b"word", None)


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


class Socket(Connection):
    """A transport over one end of a pair of sockets; ``far`` is the other end."""

    def __init__(self, reactor: Any) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.far.setblocking(False)
        super().__init__(near, Protocol(), reactor)
        self.connected = True
        self.logstr = "test"

    def arrived(self) -> bytes:
        """What the other end can read."""
        try:
            return self.far.recv(1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture
def sockets(reactor: LeanEPollReactor) -> Iterator[list[Socket]]:
    """Two of them."""
    made = [Socket(reactor), Socket(reactor)]
    yield made
    for one in made:
        if one.connected:
            one.connectionLost(Failure(ConnectionDone()))
        one.far.close()


def _crowd(reactor: LeanEPollReactor, then: Any) -> Iterator[Readable]:
    """As many events as make a turn crowded; with the first comes ``then``."""
    readers = [Readable(reactor) for _ in range(CROWD)]
    calls = iter([then])
    for one in readers:
        one.then = lambda: next(calls, lambda: None)()
    reactor.doPoll(0)
    yield from readers


def test_without_a_crowd_writes_leave_at_once(
    reactor: LeanEPollReactor, readable: Readable, sockets: list[Socket]
) -> None:
    """A token does not wait for anything."""
    near = sockets[0]
    seen: list[bytes] = []

    def answer() -> None:
        write_soon(near, b"token")
        seen.append(near.arrived())

    readable.then = answer
    reactor.doPoll(0)
    assert seen == [b"token"]


def test_a_crowded_turn_writes_at_its_end(reactor: LeanEPollReactor, sockets: list[Socket]) -> None:
    """All that one peer gets leaves in one piece and in order, and nothing is left behind."""
    near, other = sockets
    seen: list[bytes] = []

    def answer() -> None:
        write_soon(near, b"one ")
        write_soon(other, b"else")
        write_soon(near, b"two")
        seen.append(near.arrived())
        assert (unsent(near), unsent(other)) == (7, 4)

    for reader in _crowd(reactor, answer):
        reader.close()
    assert seen == [b""]
    assert (near.arrived(), other.arrived(), unsent(near)) == (b"one two", b"else", 0)
    write_soon(near, b"later")
    assert near.arrived() == b"later"


def test_what_ends_in_a_crowd_is_written_before(reactor: LeanEPollReactor, sockets: list[Socket]) -> None:
    """A connection that is closed, or aborted after a push, has told its last word."""
    closing, aborted = sockets

    def answer() -> None:
        write_soon(closing, b"last")
        closing.loseConnection()
        write_soon(aborted, b"word")
        push(aborted)
        push(aborted)
        aborted.abortConnection()

    for reader in _crowd(reactor, answer):
        reader.close()
    reactor.doPoll(0)
    assert (closing.arrived(), aborted.arrived()) == (b"last", b"word")


def test_a_full_socket_keeps_the_order(reactor: LeanEPollReactor, sockets: list[Socket]) -> None:
    """What it does not take waits in the transport, and what comes later waits behind."""
    near = sockets[0]
    much = bytes(range(256)) * 4096
    write_now(near, much)
    assert unsent(near) > 0
    for reader in _crowd(reactor, lambda: write_soon(near, b"behind")):
        reader.close()
    got = b""
    while unsent(near) or not got.endswith(b"behind"):
        got += near.arrived()
        reactor.doPoll(0)
    assert got == much + b"behind"


def test_what_ends_behind_a_queue_is_written_before(reactor: LeanEPollReactor, sockets: list[Socket]) -> None:
    """The last word of a connection whose client is slow comes behind what it has not taken yet."""
    near = sockets[0]
    sent = 0
    while not unsent(near):
        write_now(near, b"x" * 1000)
        sent += 1000

    def answer() -> None:
        write_soon(near, b"last word")
        near.loseConnection()

    readers = [Readable(reactor) for _ in range(CROWD)]
    readers[0].then = answer
    # Behind those in the same turn comes that there is room for what is queued.
    got = near.arrived()
    while near.connected:
        reactor.doPoll(0)
        got += near.arrived()
    for reader in readers:
        reader.close()
    assert (len(got), got[-9:]) == (sent + 9, b"last word")


def test_a_fault_in_writing_to_one_is_nothing_to_the_others(
    reactor: LeanEPollReactor, sockets: list[Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and what the others get leaves."""
    near, other = sockets

    def answer() -> None:
        write_soon(near, b"one")
        write_soon(other, b"two")

    def faulty(transport: Socket, data: bytes) -> None:
        if transport is near:
            raise ValueError("a fault")
        write_now(transport, data)

    monkeypatch.setattr(epoll, "write_now", faulty)
    with capturedLogs() as events:
        for reader in _crowd(reactor, answer):
            reader.close()
    assert [str(event["log_failure"].value) for event in events if "log_failure" in event] == ["a fault"]
    assert (other.arrived(), reactor.outbox) == (b"two", None)


def test_what_is_aborted_says_no_more(reactor: LeanEPollReactor, sockets: list[Socket]) -> None:
    """What still waits for it is dropped."""
    near = sockets[0]

    def answer() -> None:
        write_soon(near, b"too late")
        near.abortConnection()

    for reader in _crowd(reactor, answer):
        reader.close()
    assert near.arrived() == b""


class Wrapper(StringTransport):
    """A TLS transport tells the reactor of the socket below it."""

    reactor = LeanEPollReactor.__new__(LeanEPollReactor)


@pytest.mark.parametrize("kind", [StringTransport, Wrapper])
def test_other_transports_are_written_to_as_ever(kind: type[StringTransport]) -> None:
    """TLS, tests: what is no plain socket has its own way, in a crowd, too."""
    Wrapper.reactor.outbox = {}
    transport = kind()
    write_soon(transport, b"a")
    assert (transport.value(), unsent(transport)) == (b"a", 0)
    push(transport)
    assert transport.value() == b"a"
